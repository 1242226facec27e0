// The functions, visualizers and constants that every evalscript finds: evaluated before the script, after `prelude.js`.
//
// Rules: Sentinel Hub documentation, "Utilities" of evalscripts; what is undocumented or printed in two ways there is
// as the research note evalscript-v3, section 8, found it in scripts that run on the service.
(function () {
  "use strict";
  const { max, min, pow, round, trunc } = Math;
  const { isArray } = Array;
  const { defineProperty } = Object;

  const JAVA_DOUBLE_MAX_VAL = 1.7976931348623157e308;
  const clamp = (v, low, high) => min(max(v, low), high);

  // ---- colours: an integer 0xRRGGBB, or an array that is used as it is ----

  const int2rgb = (color) => [(color >> 16) & 255, (color >> 8) & 255, color & 255];
  const rgb2int = ([r, g, b]) => (r << 16) + (g << 8) + b;
  const normalizeRGB = (rgb) => rgb.map((v) => v / 255);
  const shown = (color) => (isArray(color) ? color.slice() : normalizeRGB(int2rgb(color)));
  const mixed = (a, b, share) => a.map((v, i) => v * share + b[i] * (1 - share));

  function combine(first, second, share) {
    if (isArray(first)) return mixed(first, second, share);
    return rgb2int(mixed(int2rgb(first), int2rgb(second), share).map(round));
  }

  // The colour between two: of integers each byte by `whole`; of arrays as it comes, or as if they were bytes / 255.
  function between(low, high, share, whole, normalized) {
    if (!isArray(low)) return normalizeRGB(mixed(int2rgb(high), int2rgb(low), share).map(whole));
    const color = mixed(high, low, share);
    return normalized ? color.map((v) => whole(v * 255 + TINY) / 255) : color;
  }
  const TINY = 1e-9; // what is a byte in decimals must not fall below it in doubles
  const isNormalized = ([, color]) => !isArray(color) || color.every((v) => v >= 0 && v <= 1);

  const blueRed = [[1, 0x000080], [0.875, 0x0000ff], [0.625, 0x00ffff], [0.375, 0xffff00], [0.125, 0xff0000], [0, 0x800000]];
  const redTemperature = [[1, 0x000000], [0.525, 0xae0000], [0.3, 0xff6e00], [0.25, 0xff8600], [0, 0xffffff]];
  const greenWhite = [[1, 0x000000], [0.6, 0x006600], [0.3, 0x80b300], [0, 0xffffff]];
  const oceanColor = [
    [0, 0x93006c], [0.0471, 0x6f0090], [0.098, 0x4800b7], [0.149, 0x2100de], [0.2, 0x000aff], [0.2471, 0x004aff],
    [0.298, 0x0090ff], [0.349, 0x00d5ff], [0.4, 0x00ffd7], [0.4471, 0x00ff77], [0.498, 0x00ff0f], [0.549, 0x60ff00],
    [0.6, 0xc8ff00], [0.6471, 0xffeb00], [0.698, 0xffb700], [0.749, 0xff8300], [0.8, 0xff4f00], [0.8471, 0xff1f00],
    [0.898, 0xe60000], [0.949, 0xa50000], [1, 0x690000],
  ].map(([position, color]) => [position, normalizeRGB(int2rgb(color))]);

  // ---- numbers ----

  const index = (x, y) => (x + y === 0 ? 0 : (x - y) / (x + y));
  const inverse = (x) => (x === 0 ? JAVA_DOUBLE_MAX_VAL : 1 / x);

  function valueMap(v, intervals, values) {
    if (!isArray(intervals) || !isArray(values)) return v;
    let i = 0;
    while (i < intervals.length - 1 && !(v <= intervals[i])) i++;
    return values[i];
  }

  function colorMap(v, limits, colors) {
    if (!isArray(limits) || !isArray(colors)) return v;
    for (let i = 0; i < limits.length; i++) if (v < limits[i]) return colors[i];
    return colors[colors.length - 1];
  }

  const copied = (value) => (isArray(value) ? value.slice() : value);

  function valueInterpolate(v, intervals, values) {
    if (!isArray(intervals) || !isArray(values)) return v;
    if (v <= (intervals.length > 0 ? intervals[0] : 0)) return copied(values[0]);
    for (let i = 1; i < intervals.length; i++) {
      if (v <= intervals[i]) {
        const share = (v - intervals[i - 1]) / (intervals[i] - intervals[i - 1]);
        const [low, high] = [values[i - 1], values[i]];
        return isArray(low) ? low.map((a, k) => a * (1 - share) + high[k] * share) : low * (1 - share) + high * share;
      }
    }
    return copied(values[values.length - 1]);
  }

  // ---- visualizers ----

  class Visualizer {
    processList(values) {
      return values.map((v, i) => this.process(v, i));
    }
  }

  class ColorMapVisualizer extends Visualizer {
    constructor(pairs) {
      super();
      this.pairs = pairs;
    }

    getColorFromValue(v) {
      let color = this.pairs[0][1];
      for (const [limit, next] of this.pairs) {
        if (v < limit) break;
        color = next;
      }
      return color;
    }

    process(v) {
      return shown(this.getColorFromValue(v));
    }

    static createDefaultColorMap() {
      const colors = [
        0x000000, 0xff0000, 0x9a0000, 0x660000, 0xffff33, 0xcccc33, 0x666600, 0x33ffff, 0x33cccc, 0x006666, 0x33ff33,
        0x33cc33, 0x006600,
      ];
      const limits = [-1, -0.2, -0.1, 0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9];
      return new ColorMapVisualizer(limits.map((limit, i) => [limit, colors[i]]));
    }
  }

  // Colours between stops in ascending order; `whole` turns what lies between two bytes into a byte.
  function colorAt(v, stops, whole, normalized) {
    const last = stops[stops.length - 1];
    if (!(v > stops[0][0])) return shown(stops[0][1]);
    if (v >= last[0]) return shown(last[1]);
    let i = 1;
    while (v > stops[i][0]) i++;
    const [low, high] = [stops[i - 1], stops[i]];
    return between(low[1], high[1], (v - low[0]) / (high[0] - low[0]), whole, normalized);
  }

  class ColorRampVisualizer extends Visualizer {
    constructor(ramps, minVal, maxVal) {
      super();
      const stops = ramps.slice().sort((a, b) => a[0] - b[0]);
      const [first, last] = [stops[0][0], stops[stops.length - 1][0]];
      const low = minVal === undefined ? first : minVal;
      const high = maxVal === undefined ? last : maxVal;
      const moved = low !== first || high !== last;
      this.stops = stops.map(([v, color]) => [moved ? low + ((v - first) / (last - first)) * (high - low) : v, color]);
      this.normalized = stops.every(isNormalized);
    }

    process(v) {
      return colorAt(v, this.stops, trunc, this.normalized);
    }

    inverse() {
      const { stops } = this;
      return new ColorRampVisualizer(stops.map(([v], i) => [v, stops[stops.length - 1 - i][1]]));
    }

    static createRedTemperature(minVal, maxVal) {
      return mirrored(redTemperature, minVal, maxVal);
    }

    static createWhiteGreen(minVal, maxVal) {
      return mirrored(greenWhite, minVal, maxVal);
    }

    static createBlueRed(minVal, maxVal) {
      return mirrored(blueRed, minVal, maxVal);
    }

    static createOceanColor(minVal, maxVal) {
      return new ColorRampVisualizer(oceanColor, minVal, maxVal);
    }
  }

  class ColorGradientVisualizer extends Visualizer {
    constructor(pairs, minVal = 0, maxVal = 1) {
      super();
      this.stops = pairs.map(([position, color]) => [minVal * position + maxVal * (1 - position), color]);
      this.minVal = minVal;
      this.maxVal = maxVal;
    }

    process(v) {
      const { stops } = this;
      if (v <= this.minVal) return shown(stops[0][1]);
      if (v >= this.maxVal) return shown(stops[stops.length - 1][1]);
      return colorAt(v, stops, round);
    }

    static createRedTemperature(minVal, maxVal) {
      return new ColorGradientVisualizer(redTemperature, minVal, maxVal);
    }

    static createWhiteGreen(minVal, maxVal) {
      return new ColorGradientVisualizer(greenWhite, minVal, maxVal);
    }

    static createBlueRed(minVal, maxVal) {
      return new ColorGradientVisualizer(blueRed, minVal, maxVal);
    }
  }

  const mirrored = (ramp, minVal, maxVal) => new ColorRampVisualizer(ramp, minVal, maxVal).inverse();

  class StretchVisualizer extends Visualizer {
    constructor(minValue = 0, maxValue = 1, gain = 1, offset = 0, gamma = 1) {
      super();
      this.minValue = minValue;
      this.maxValue = maxValue;
      this.gain = gain;
      this.offset = offset;
      this.gamma = gamma;
    }

    stretched(v) {
      const x = (this.gain * (v - this.minValue)) / (this.maxValue - this.minValue) + this.offset;
      return this.gamma === 1 ? x : pow(max(0, x), this.gamma);
    }
  }

  class DefaultVisualizer extends StretchVisualizer {
    process(v) {
      const x = this.stretched(v);
      return this.gamma === 1 ? clamp(x, 0, 1) : x;
    }
  }

  const KNEE = 0.92; // above it values rise so slowly that twice the range ends at 1
  const KNEE_SLOPE = (1 - KNEE) / (2 - KNEE);

  class HighlightCompressVisualizer extends StretchVisualizer {
    process(v) {
      const x = this.stretched(v);
      const compressed = this.maxValue > 0 && this.maxValue < 1 && x > KNEE;
      return clamp(compressed ? KNEE + (x - KNEE) * KNEE_SLOPE : x, 0, 1);
    }
  }

  class HighlightCompressVisualizerSingle extends HighlightCompressVisualizer {
    process(v) {
      return [super.process(v)];
    }
  }

  class Identity extends Visualizer {
    process(v) {
      return isArray(v) ? v : [v];
    }
  }

  // ---- quality bands ----

  // A field is [name, first bit, bits]; without bits, one.
  const decoder = (fields) => (value) => {
    const decoded = {};
    for (const [name, bit, bits = 1] of fields) decoded[name] = (value >>> bit) & ((1 << bits) - 1);
    return decoded;
  };

  const decodeL8C2Qa = decoder([
    ["fill", 0], ["dilatedCloud", 1], ["cirrus", 2], ["cloud", 3], ["cloudShadow", 4], ["snow", 5], ["clear", 6],
    ["water", 7], ["cloudConfidence", 8, 2], ["cloudShadowConfidence", 10, 2], ["snowIceConfidence", 12, 2],
    ["cirrusConfidence", 14, 2],
  ]);
  const decodeLs8Qa = decoder([
    ["designatedFill", 0], ["terrainOcclusion", 1], ["radiometricSaturation", 2, 2], ["cloud", 4],
    ["cloudConfidence", 5, 2], ["cloudShadowConfidence", 7, 2], ["snowIceConfidence", 9, 2], ["cirrusConfidence", 11, 2],
  ]);
  const saturated = [];
  for (let band = 1; band <= 21; band++) saturated.push([`saturatedB${band < 10 ? "0" : ""}${band}`, 21 - band]);
  const decodeS3OLCIQualityFlags = decoder([
    ["land", 31], ["coastline", 30], ["fresh_inland_water", 29], ["tidal_region", 28], ["bright", 27],
    ["straylight_risk", 26], ["invalid", 25], ["cosmetic", 24], ["duplicated", 23], ["sun_glint_risk", 22],
    ["dubious", 21], ...saturated,
  ]);

  const provided = {
    JAVA_DOUBLE_MAX_VAL, blueRed, redTemperature, greenWhite, oceanColor,
    int2rgb, rgb2int, normalizeRGB, combine, index, inverse, valueMap, valueInterpolate, colorMap,
    colorBlend: valueInterpolate, // its older name, and the one that most scripts use
    ColorMapVisualizer, ColorRampVisualizer, ColorGradientVisualizer, DefaultVisualizer, HighlightCompressVisualizer,
    HighlightCompressVisualizerSingle, Identity,
    decodeL8C2Qa, decodeLs8Qa, decodeS3OLCIQualityFlags,
  };
  // Properties, not declarations: a script may declare the same name with let, const or class.
  for (const name in provided) {
    defineProperty(globalThis, name, { value: provided[name], writable: true, configurable: true, enumerable: false });
  }
})();
