//VERSION=3
// For comparison only: the manner of the interpolation scripts in circulation. Dates stay Date objects, which every
// search compares; every pixel makes its arrays anew. Outputs are those of evalscripts/land_cover.js, except that dates
// before the first and after the last valid sample stay 0.
const targetDates = [];
for (let d = new Date(2019, 0, 1); d < new Date(2019, 11, 31); d = new Date(d.getTime() + 10 * 24 * 3600 * 1000)) {
  targetDates.push(d);
}
const bandNames = ["B02", "B03", "B04", "B08", "B11", "B12"];
const indexBands = { NDVI: ["B08", "B04"], NDWI: ["B03", "B08"], NDBI: ["B11", "B08"] };

function setup() {
  const n = targetDates.length;
  return {
    input: [{ bands: [...bandNames, "CLM", "dataMask"], units: "DN" }],
    output: [
      ...[...bandNames, ...Object.keys(indexBands)].map((id) => ({ id, bands: n, sampleType: SampleType.UINT16 })),
      { id: "QUALITY", bands: n, sampleType: SampleType.UINT8 },
      { id: "VALID_COUNT", bands: 1, sampleType: SampleType.UINT16 },
    ],
    mosaicking: Mosaicking.ORBIT,
  };
}

// Position of the interval of dates that holds the date, or -1.
function findInterval(date, dates) {
  let low = 0;
  let high = dates.length - 2;
  while (low <= high) {
    const middle = (low + high) >> 1;
    if (date < dates[middle]) high = middle - 1;
    else if (date > dates[middle + 1]) low = middle + 1;
    else return middle;
  }
  return -1;
}

function interpolateSeries(dates, series) {
  const values = [];
  const inside = [];
  for (const date of targetDates) {
    const i = findInterval(date, dates);
    inside.push(i >= 0 ? 1 : 0);
    values.push(i >= 0 ? series[i] + ((series[i + 1] - series[i]) * (date - dates[i])) / (dates[i + 1] - dates[i]) : 0);
  }
  return [values, inside];
}

function evaluatePixel(samples, scenes) {
  const dates = [];
  const series = {};
  for (const band of bandNames) series[band] = [];
  for (let i = samples.length - 1; i >= 0; i--) {
    if (samples[i].CLM !== 0 || samples[i].dataMask !== 1) continue;
    dates.push(new Date(scenes[i].date));
    for (const band of bandNames) series[band].push(samples[i][band]);
  }
  const result = { VALID_COUNT: [dates.length] };
  for (const band of bandNames) [result[band], result.QUALITY] = interpolateSeries(dates, series[band]);
  for (const index of Object.keys(indexBands)) {
    const [a, b] = indexBands[index].map((band) => result[band]);
    result[index] = a.map((value, k) => 10000 * ((value - b[k]) / (value + b[k]) + 1));
  }
  return result;
}
