//VERSION=3
// A year of Sentinel-2 as cloud-free series: masks clouds, interpolates each pixel linearly onto uniform dates, derives
// indices. Valid as it stands on Sentinel Hub, with cloudMask "scl" also on the Copernicus Data Space Ecosystem. Only
// PARAMETERS varies; it is JSON.
//
//   start, end   first output date and the last possible one, YYYY-MM-DD; output dates are start + k * stepDays, 00:00 UTC
//   bands        outputs with 10000 * reflectance, 0 where QUALITY is 0
//   indices      name: [a, b] gives 10000 * ((a - b) / (a + b) + 1) of the interpolated bands, 65535 = no data
//   cloudMask    "s2cloudless" (band CLM) or "scl" (band SCL, for services without CLM)
//
// One band a date in every output, and besides:
//   QUALITY      0 no valid sample, 1 interpolated, 2 held before the first or after the last valid sample
//   VALID_COUNT  one band: number of days with a valid sample
//
// userdata.json has the output dates as timestamps, and the days of all acquisitions: their number decides the price.
const PARAMETERS = {
  "start": "2019-01-01",
  "end": "2019-12-31",
  "stepDays": 15,
  "bands": ["B02", "B03", "B04", "B08", "B11", "B12"],
  "indices": {"NDVI": ["B08", "B04"], "NDWI": ["B03", "B08"], "NDBI": ["B11", "B08"]},
  "cloudMask": "s2cloudless"
};

const DAY_MS = 86400000;
const NO_DATA = 65535;
// No data, cloud shadow, unclassified, cloud of medium and high probability, cirrus: what the official examples of the
// Copernicus Data Space leave out. Snow (11) is a state of the land; saturated pixels (1) may be so all year (bright roofs).
const INVALID_SCL = [0, 3, 7, 8, 9, 10];

// Everything below counts in whole days since 1970, UTC: numbers, because comparing Dates for every pixel is slow.
const DAYS = outputDays();
const COUNT = DAYS.length;
const INDICES = Object.keys(PARAMETERS.indices);
const BANDS = [...new Set([...PARAMETERS.bands, ...Object.values(PARAMETERS.indices).flat()])];

const MASK_BAND = PARAMETERS.cloudMask === "scl" ? "SCL" : "CLM";
const VALID_SCL = Array.from({ length: 12 }, (_, scl) => !INVALID_SCL.includes(scl));
const isClear = MASK_BAND === "SCL" ? (sample) => VALID_SCL[sample.SCL] === true : (sample) => sample.CLM === 0;

// Results, allocated once and overwritten by each pixel. 0.5 makes them arrays of doubles from the start.
const bandSeries = BANDS.map(() => DAYS.map(() => 0.5));
const indexSeries = INDICES.map(() => DAYS.map(() => 0.5));
const quality = DAYS.map(() => 0);
const validCount = [0];
const result = { QUALITY: quality, VALID_COUNT: validCount };
PARAMETERS.bands.forEach((band) => (result[band] = bandSeries[BANDS.indexOf(band)]));
INDICES.forEach((index, i) => (result[index] = indexSeries[i]));
const indexInputs = INDICES.map((index) => PARAMETERS.indices[index].map((band) => bandSeries[BANDS.indexOf(band)]));

// For each output date: the valid samples around it (positions in validSamples) and the weight of the later one.
const before = new Uint16Array(COUNT);
const after = new Uint16Array(COUNT);
const weight = new Float64Array(COUNT);

function setup() {
  return {
    input: [{ bands: [...BANDS, MASK_BAND, "dataMask"], units: "DN" }],
    output: [
      ...[...PARAMETERS.bands, ...INDICES].map((id) => ({ id, bands: COUNT, sampleType: "UINT16" })),
      { id: "QUALITY", bands: COUNT, sampleType: "UINT8" },
      { id: "VALID_COUNT", bands: 1, sampleType: "UINT16" },
    ],
    mosaicking: "ORBIT",
  };
}

function evaluatePixel(samples, scenes) {
  if (scenes !== knownScenes) readScenes(scenes);
  const valid = collectValid(samples);
  validCount[0] = valid;
  if (valid === 0) return emptyResult();
  placeDates(valid);
  for (let b = 0; b < BANDS.length; b++) interpolate(BANDS[b], bandSeries[b], valid);
  for (let i = 0; i < INDICES.length; i++) normalizedDifference(indexInputs[i][0], indexInputs[i][1], indexSeries[i]);
  return result;
}

function updateOutputMetadata(scenes, inputMetadata, outputMetadata) {
  const timestamps = DAYS.map((day) => new Date(day * DAY_MS).toISOString().replace(".000", ""));
  const acquisitions = scenes.orbits.map((orbit) => orbit.dateFrom.slice(0, 10));
  outputMetadata.userData = { timestamps, acquisitions, parameters: PARAMETERS };
}

function outputDays() {
  const { start, end, stepDays } = PARAMETERS;
  if (!(stepDays >= 1)) throw new Error(`PARAMETERS.stepDays is ${stepDays}; give 1 or more days.`);
  const days = [];
  for (let day = Date.parse(start) / DAY_MS; day <= Date.parse(end) / DAY_MS; day += stepDays) days.push(day);
  return days;
}

// Scenes are the same for all pixels of one evaluation: their dates are parsed and sorted at its first pixel.
let knownScenes;
let order; // positions of the samples by day; samples of one day stay in the given order
let sortedDays; // their days
let validSamples; // of the current pixel, by day
let validDays;
let values; // of one band, of the valid samples

function readScenes(scenes) {
  const days = scenes.orbits.map((orbit) => Math.floor(Date.parse(orbit.dateFrom) / DAY_MS));
  const positions = days.map((_, position) => position).sort((a, b) => days[a] - days[b]);
  order = Uint16Array.from(positions);
  sortedDays = Int32Array.from(positions, (position) => days[position]);
  validSamples = new Array(days.length).fill(null);
  validDays = new Int32Array(days.length);
  values = new Float64Array(days.length);
  knownScenes = scenes;
}

// Puts the clear samples into validSamples, the first clear one of each day; returns how many there are.
function collectValid(samples) {
  let count = 0;
  let lastDay = -Infinity;
  for (let i = 0; i < order.length; i++) {
    const sample = samples[order[i]];
    const day = sortedDays[i];
    if (day === lastDay || sample.dataMask !== 1 || !isClear(sample)) continue;
    lastDay = day;
    validSamples[count] = sample;
    validDays[count] = day;
    count++;
  }
  return count;
}

// Finds the valid samples around each output date; on the day of a valid sample, that sample has all the weight.
function placeDates(valid) {
  const last = valid - 1;
  let next = 0; // first valid sample on the date or after it
  let k = 0;
  for (; k < COUNT && DAYS[k] < validDays[0]; k++) place(k, 0, 0, 0, 2);
  for (; k < COUNT && DAYS[k] <= validDays[last]; k++) {
    while (validDays[next] < DAYS[k]) next++;
    const start = next === 0 ? 0 : next - 1;
    const gap = validDays[next] - validDays[start];
    place(k, start, next, gap === 0 ? 0 : (DAYS[k] - validDays[start]) / gap, 1);
  }
  for (; k < COUNT; k++) place(k, last, last, 0, 2);
}

function place(k, start, end, endWeight, code) {
  before[k] = start;
  after[k] = end;
  weight[k] = endWeight;
  quality[k] = code;
}

function interpolate(band, series, valid) {
  for (let j = 0; j < valid; j++) values[j] = read(validSamples[j], band);
  for (let k = 0; k < COUNT; k++) {
    const value = values[before[k]];
    series[k] = value + (values[after[k]] - value) * weight[k];
  }
}

// Literal names, because V8 reads them several times faster than computed ones; other bands work, too.
function read(sample, band) {
  switch (band) {
    case "B02": return sample.B02;
    case "B03": return sample.B03;
    case "B04": return sample.B04;
    case "B08": return sample.B08;
    case "B11": return sample.B11;
    case "B12": return sample.B12;
    case "B05": return sample.B05;
    case "B06": return sample.B06;
    case "B07": return sample.B07;
    case "B8A": return sample.B8A;
    default: return sample[band];
  }
}

function normalizedDifference(a, b, series) {
  for (let k = 0; k < COUNT; k++) {
    const sum = a[k] + b[k];
    series[k] = sum === 0 ? NO_DATA : 10000 * ((a[k] - b[k]) / sum + 1);
  }
}

function emptyResult() {
  for (const series of bandSeries) series.fill(0);
  for (const series of indexSeries) series.fill(NO_DATA);
  quality.fill(0);
  return result;
}
