// What an evalscript finds in its global scope, and the host that runs it. Evaluated before the script; the last
// expression is the host, which only Python holds: scripts cannot reach it.
(function () {
  "use strict";
  // Kept, because a script may replace any of them.
  const { parse, stringify } = JSON;
  const { defineProperty, getOwnPropertyDescriptor, getPrototypeOf } = Object;
  const { isArray, from: arrayFrom } = Array;
  const { isView } = ArrayBuffer;
  const { isFinite } = Number;
  const { floor } = Math;
  const arrays = { Uint8Array, Int8Array, Uint16Array, Int16Array, Int32Array, Float32Array, Float64Array };
  const uncurried = (method) => Function.prototype.call.bind(method);
  // No method is looked up on the arrays that Python shares: a script could take them there, and free their memory.
  const typedArray = getPrototypeOf(Uint8Array.prototype);
  const fill = uncurried(typedArray.fill);
  const bufferOf = uncurried(getOwnPropertyDescriptor(typedArray, "buffer").get);
  const compile = Function;
  const text = String;
  const Instant = Date;
  const Failure = Error;

  // Properties, not declarations: a script may declare the same name with let, const or class.
  function provide(name, value) {
    defineProperty(globalThis, name, { value, writable: true, configurable: true, enumerable: false });
  }

  function names(list) {
    return Object.freeze(Object.fromEntries(list.map((name) => [name, name])));
  }

  provide("SampleType", names(["INT8", "UINT8", "INT16", "UINT16", "FLOAT32", "AUTO"]));
  provide("Mosaicking", names(["SIMPLE", "ORBIT", "TILE"]));
  // The service has no timers; mini-racer declares them with var, so that they cannot be deleted.
  for (const name of ["setTimeout", "clearTimeout", "__timer_manager"]) globalThis[name] = undefined;
  // What blocks the thread, runs after a call has ended, or takes memory beside the heap and the array buffers.
  for (const name of ["Atomics", "FinalizationRegistry", "SharedArrayBuffer", "WebAssembly"]) delete globalThis[name];
  delete JSON.rawJSON; // writes numbers that Python does not read

  // The service keeps what scripts print to itself; here their authors may see the first of it.
  const MOST_MESSAGES = 100;
  const MOST_CHARACTERS = 1000;
  const messages = [];
  function worded(part) {
    try {
      return typeof part === "object" && part !== null ? stringify(part) : text(part);
    } catch {
      return "[what has no words]"; // printing never fails, not even what refers to itself
    }
  }
  function keepMessage(...parts) {
    if (messages.length < MOST_MESSAGES) messages.push(parts.map(worded).join(" ").slice(0, MOST_CHARACTERS));
  }
  for (const name of ["debug", "error", "info", "log", "warn"]) console[name] = keepMessage;

  // Looks a function up by name in the script scope, which also holds what let and const declare.
  function find(name) {
    return compile(`return typeof ${name} === "function" ? ${name} : undefined`)();
  }

  // JSON has no NaN and no infinities: they travel as strings.
  function keepNumbers(key, value) {
    return typeof value === "number" && !isFinite(value) ? text(value) : value;
  }

  const MOST_ANSWERED = 2 ** 24;
  function answered(what, value, replacer) {
    const json = stringify(value, replacer);
    if (!(json && json.length > MOST_ANSWERED)) return json;
    throw new Failure(`${what} must not be longer than ${MOST_ANSWERED} characters of JSON.`);
  }

  const inputMetadata = { serviceVersion: "localhub", normalizationFactor: 0.0001 };
  const customData = {};
  const outputMetadata = {};
  let scenes = {}; // evaluatePixel's second argument
  let allScenes = {}; // updateOutputMetadata's first: the same, and for SIMPLE the tiles of the mosaic
  let slots = []; // {list, pristine}: arrays that a script may reorder, and their copies
  let program;
  let hook = ""; // the script's function that runs, or ran last

  // The form of older scripts (scenes[i].date is a Date), which carries the documented one (scenes.orbits, scenes.tiles).
  function describeScenes(kind, list) {
    const dates = list.map((item) => ({ date: new Instant(item.dateFrom || item.date) }));
    defineProperty(dates, kind, { value: list, writable: true });
    defineProperty(dates, "scenes", { value: dates, writable: true }); // public scripts of data fusion have one more level
    defineProperty(dates, "toJSON", { value: () => ({ [kind]: list }), writable: true });
    return dates;
  }

  function restore(list, pristine) {
    const count = pristine.length;
    let i = 0;
    while (i < count && list[i] === pristine[i]) i++;
    if (i < count || list.length !== count) list.splice(0, list.length, ...pristine);
  }

  function restoreScenes() {
    for (let i = 0; i < slots.length; i++) restore(slots[i].list, slots[i].pristine);
  }

  function withoutTiles({ tiles, ...orbit }) {
    return orbit;
  }

  const alone = (datasets) => datasets[0].key === null;

  // What a script gets or gives for each dataset: by key, or as it is where there is one dataset only.
  function byKey(datasets, part) {
    if (alone(datasets)) return part(datasets[0], 0);
    const parts = {};
    datasets.forEach((dataset, d) => (parts[dataset.key] = part(dataset, d)));
    return parts;
  }

  function asCollection({ kind, list, from, to }) {
    const period = { from: new Instant(from), to: new Instant(to) };
    return kind ? { ...period, scenes: { [kind]: list.map(withoutTiles) } } : period;
  }

  function positionsOf(kept, list) {
    const positions = kept.map((item) => item && item.__idx);
    if (!positions.every((position) => position in list)) {
      throw new Failure("preProcessScenes and filterScenes must return scenes they were given, with their __idx.");
    }
    return positions;
  }

  function keptOf(returned, { kind }) {
    const kept = returned && returned.scenes && returned.scenes[kind];
    if (!isArray(kept)) throw new Failure(`preProcessScenes must return collections with an array scenes.${kind}.`);
    return kept;
  }

  // The samples that the script keeps, as positions in each dataset's list, in the script's order.
  function choose(datasets) {
    const preProcessScenes = find("preProcessScenes");
    const filterScenes = find("filterScenes");
    const all = datasets.map(({ list, samples }) => arrayFrom({ length: samples }, (_, i) => i));
    if (!datasets.some(({ kind }) => kind)) return all;
    if (preProcessScenes) {
      hook = "preProcessScenes";
      const returned = preProcessScenes(byKey(datasets, asCollection));
      return datasets.map((dataset, d) => {
        if (!dataset.kind) return all[d];
        return positionsOf(keptOf(alone(datasets) ? returned : returned && returned[dataset.key], dataset), dataset.list);
      });
    }
    if (filterScenes && alone(datasets)) {
      const [{ list, from, to }] = datasets;
      const dated = list.map((item) => ({ ...item, date: new Instant(item.dateFrom || item.date) }));
      hook = "filterScenes";
      const kept = filterScenes(dated, { ...inputMetadata, from: new Instant(from), to: new Instant(to) });
      if (!isArray(kept)) throw new Failure("filterScenes must return an array of scenes.");
      return [positionsOf(kept, list)];
    }
    return all;
  }

  return {
    setup() {
      if (!find("evaluatePixel")) throw new Failure("The script has no function evaluatePixel.");
      const setup = find("setup");
      if (!setup) throw new Failure("The script has no function setup.");
      hook = "setup";
      return answered("What setup returns", setup(), keepNumbers);
    },

    // A script in the simple form declares nothing: what it returns for a pixel with data tells the number of bands.
    simpleSetup(names) {
      const input = parse(names);
      const sample = {};
      for (const name of input) sample[name] = name === "dataMask" ? 1 : 0.2;
      hook = "evaluatePixel";
      const returned = find("evaluatePixel")(sample);
      if (!isArray(returned)) throw new Failure("Script must return an array.");
      return stringify({ input, output: { bands: returned.length } });
    },

    // request: {datasets: [{key, kind, list, samples, from, to}], bands}; kind is null for SIMPLE, which has no choice.
    prepare(request) {
      const { datasets, bands } = parse(request);
      const positions = choose(datasets);
      slots = [];
      const described = datasets.map(({ kind, list }, d) => {
        if (!kind) return describeScenes("tiles", list);
        const kept = positions[d].map((position) => list[position]);
        const dates = describeScenes(kind, kept);
        for (const items of [dates, kept]) slots.push({ list: items, pristine: items.slice() });
        return dates;
      });
      allScenes = byKey(datasets, (dataset, d) => described[d]);
      scenes = byKey(datasets, ({ kind }, d) => (kind ? described[d] : {}));
      const outputs = {};
      for (const id in bands) outputs[id] = { bands: bands[id] };
      const updateOutput = find("updateOutput");
      const dates = (dataset, d) => ({ scenes: described[d].map(({ date }) => ({ date })) });
      hook = "updateOutput";
      if (updateOutput) updateOutput(outputs, byKey(datasets, dates));
      return answered("What updateOutput sets", { positions, outputs }, keepNumbers);
    },

    // source: what localhub/engine/loop.py generates; the buffers stay referenced by the program as long as it lives.
    compile(source) {
      const isList = (value) => isArray(value) || isView(value);
      const arrayExpected = () => new Failure("Script must return an array.");
      const context = { scenes, inputMetadata, customData, outputMetadata };
      const evaluatePixel = find("evaluatePixel");
      const given = { evaluatePixel, context, restoreScenes, isList, arrayExpected, arrays, fill, floor };
      program = compile("given", source)(given);
      hook = "evaluatePixel";
    },

    input: (index) => bufferOf(program.inputs[index]),
    output: (index) => bufferOf(program.outputs[index]),
    run: (pixels) => program.run(pixels),
    wrongLengths: () => stringify(program.wrongLengths),
    messages: () => stringify(messages),
    hook: () => hook,

    finish() {
      const updateOutputMetadata = find("updateOutputMetadata");
      hook = "updateOutputMetadata";
      restoreScenes();
      if (updateOutputMetadata) updateOutputMetadata(allScenes, inputMetadata, outputMetadata);
      return answered("userData", outputMetadata.userData) || "{}";
    },
  };
})();
