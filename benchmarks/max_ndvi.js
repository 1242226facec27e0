//VERSION=3
// For measuring: the greatest NDVI of a series, the shortest script of those that run over many scenes.
function setup() {
  return {
    input: ["B04", "B08"],
    output: { bands: 1, sampleType: "FLOAT32" },
    mosaicking: "ORBIT",
  };
}

function evaluatePixel(samples) {
  let greatest = -1;
  for (let i = 0; i < samples.length; i++) {
    const { B04, B08 } = samples[i];
    const ndvi = (B08 - B04) / (B08 + B04);
    if (ndvi > greatest) greatest = ndvi;
  }
  return [greatest];
}
