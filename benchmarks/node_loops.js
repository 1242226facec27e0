// The benchmark's scripts in Node.js, each with a loop over pixels written for it by hand: bands and outputs are named in
// the source, and what differs from one script to another is written out. Two ways of making samples are measured: fresh
// literals for every pixel, and objects that are kept and overwritten. Bands come as (scene, pixel) and outputs leave as
// (band, pixel), as in NumPy's arrays.
//
// node node_loops.js JOB.json: answers each line of its input with the CPU seconds of so many rounds over all pixels, all
// threads of the process together; the first round's outputs are written to the files that the job names.
"use strict";
const { readFileSync, writeFileSync } = require("node:fs");
const { createInterface } = require("node:readline");
const vm = require("node:vm");

const ARRAYS = { uint8: Uint8Array, uint16: Uint16Array, float32: Float32Array };

const trueColour = {
  literals({ B02, B03, B04 }, { pixels }, evaluatePixel) {
    const rgb = new Uint8Array(3 * pixels);
    for (let p = 0; p < pixels; p++) {
      const sample = { B02: B02[p] * 0.0001, B03: B03[p] * 0.0001, B04: B04[p] * 0.0001 };
      storeAuto(evaluatePixel(sample), rgb, p, pixels);
    }
    return { default: rgb };
  },
  kept({ B02, B03, B04 }, { pixels }, evaluatePixel) {
    const rgb = new Uint8Array(3 * pixels);
    const sample = { B02: 0.5, B03: 0.5, B04: 0.5 };
    for (let p = 0; p < pixels; p++) {
      sample.B02 = B02[p] * 0.0001;
      sample.B03 = B03[p] * 0.0001;
      sample.B04 = B04[p] * 0.0001;
      storeAuto(evaluatePixel(sample), rgb, p, pixels);
    }
    return { default: rgb };
  },
};

const maxNdvi = {
  literals({ B04, B08 }, { pixels, scenes }, evaluatePixel) {
    const ndvi = new Float32Array(pixels);
    for (let p = 0; p < pixels; p++) {
      const samples = [];
      for (let at = p; at < scenes * pixels; at += pixels) {
        samples.push({ B04: B04[at] * 0.0001, B08: B08[at] * 0.0001 });
      }
      ndvi[p] = evaluatePixel(samples)[0];
    }
    return { default: ndvi };
  },
  kept({ B04, B08 }, { pixels, scenes }, evaluatePixel) {
    const ndvi = new Float32Array(pixels);
    const samples = Array.from({ length: scenes }, () => ({ B04: 0.5, B08: 0.5 }));
    for (let p = 0; p < pixels; p++) {
      for (let s = 0, at = p; s < scenes; s++, at += pixels) {
        const sample = samples[s];
        sample.B04 = B04[at] * 0.0001;
        sample.B08 = B08[at] * 0.0001;
      }
      ndvi[p] = evaluatePixel(samples)[0];
    }
    return { default: ndvi };
  },
};

const landCover = {
  literals({ B02, B03, B04, B08, B11, B12, CLM, dataMask }, { pixels, scenes, orbits, dates }, evaluatePixel) {
    const results = landCoverResults(dates, pixels);
    for (let p = 0; p < pixels; p++) {
      const samples = [];
      for (let at = p; at < scenes * pixels; at += pixels) {
        samples.push({
          B02: B02[at], B03: B03[at], B04: B04[at], B08: B08[at], B11: B11[at], B12: B12[at],
          CLM: CLM[at], dataMask: dataMask[at],
        });
      }
      storeLandCover(evaluatePixel(samples, orbits), results, p, pixels);
    }
    return results;
  },
  kept({ B02, B03, B04, B08, B11, B12, CLM, dataMask }, { pixels, scenes, orbits, dates }, evaluatePixel) {
    const results = landCoverResults(dates, pixels);
    const samples = Array.from({ length: scenes }, () => ({
      B02: 0, B03: 0, B04: 0, B08: 0, B11: 0, B12: 0, CLM: 0, dataMask: 0,
    }));
    for (let p = 0; p < pixels; p++) {
      for (let s = 0, at = p; s < scenes; s++, at += pixels) {
        const sample = samples[s];
        sample.B02 = B02[at];
        sample.B03 = B03[at];
        sample.B04 = B04[at];
        sample.B08 = B08[at];
        sample.B11 = B11[at];
        sample.B12 = B12[at];
        sample.CLM = CLM[at];
        sample.dataMask = dataMask[at];
      }
      storeLandCover(evaluatePixel(samples, orbits), results, p, pixels);
    }
    return results;
  },
};

function landCoverResults(dates, pixels) {
  const series = () => new Uint16Array(dates * pixels);
  return {
    B02: series(), B03: series(), B04: series(), B08: series(), B11: series(), B12: series(),
    NDVI: series(), NDWI: series(), NDBI: series(),
    QUALITY: new Uint8Array(dates * pixels), VALID_COUNT: new Uint16Array(pixels),
  };
}

function storeLandCover(result, results, p, pixels) {
  storeUint16(result.B02, results.B02, p, pixels);
  storeUint16(result.B03, results.B03, p, pixels);
  storeUint16(result.B04, results.B04, p, pixels);
  storeUint16(result.B08, results.B08, p, pixels);
  storeUint16(result.B11, results.B11, p, pixels);
  storeUint16(result.B12, results.B12, p, pixels);
  storeUint16(result.NDVI, results.NDVI, p, pixels);
  storeUint16(result.NDWI, results.NDWI, p, pixels);
  storeUint16(result.NDBI, results.NDBI, p, pixels);
  storeUint8(result.QUALITY, results.QUALITY, p, pixels);
  storeUint16(result.VALID_COUNT, results.VALID_COUNT, p, pixels);
}

function storeAuto(values, array, p, pixels) {
  for (let i = 0, at = p; i < values.length; i++, at += pixels) {
    const v = values[i];
    array[at] = v < 0 ? 0 : v > 1 ? 255 : v * 255 + 0.5;
  }
}

function storeUint8(values, array, p, pixels) {
  for (let i = 0, at = p; i < values.length; i++, at += pixels) {
    const v = values[i];
    array[at] = v < 0 ? 0 : v > 255 ? 255 : v + 0.5;
  }
}

function storeUint16(values, array, p, pixels) {
  for (let i = 0, at = p; i < values.length; i++, at += pixels) {
    const v = values[i];
    array[at] = v < 0 ? 0 : v > 65535 ? 65535 : v + 0.5;
  }
}

function loadScript(path) {
  globalThis.SampleType = { UINT8: "UINT8", UINT16: "UINT16", FLOAT32: "FLOAT32", AUTO: "AUTO" };
  globalThis.Mosaicking = { SIMPLE: "SIMPLE", ORBIT: "ORBIT" };
  vm.runInThisContext(readFileSync(path, "utf8"), path);
  return vm.runInThisContext("evaluatePixel");
}

function readBand({ file, dtype }) {
  const { buffer, byteOffset, byteLength } = readFileSync(file);
  return new ARRAYS[dtype](buffer.slice(byteOffset, byteOffset + byteLength));
}

function cpuSeconds() {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1e6;
}

function main(job) {
  const evaluatePixel = loadScript(job.script);
  const loop = { trueColour, maxNdvi, landCover }[job.loop][job.samples];
  const bands = Object.fromEntries(job.bands.map((band) => [band.name, readBand(band)]));
  const size = { pixels: job.pixels, scenes: job.scenes, dates: job.dates, orbits: { orbits: job.orbits } };
  const results = loop(bands, size, evaluatePixel);
  for (const { id, file } of job.outputs) writeFileSync(file, results[id]);
  createInterface({ input: process.stdin }).on("line", () => {
    const begin = cpuSeconds();
    for (let round = 0; round < job.rounds; round++) loop(bands, size, evaluatePixel);
    console.log(cpuSeconds() - begin);
  });
}

console.log(`Node.js ${process.versions.node}, V8 ${process.versions.v8}`);
main(JSON.parse(readFileSync(process.argv[2], "utf8")));
