// The running containers of all sources, from records on standard input, one a line: the fold of docs/events.md.
//
//     kcat -C -e -b localhost:9092 -t containers | node examples/state.mjs
//
// It expects the records of each source in order, apart from repetitions. It prints one JSON document.
import { createInterface } from "node:readline";

const RUNNING = new Set(["started", "paused", "unpaused", "present"]);
const sources = new Map(); // by host and engine

/** Return the record in a line, also in a CloudEvents envelope; null if there is none of major version 1. */
function decode(line) {
  try {
    const document = JSON.parse(line);
    const record = document.specversion ? document.data : document;
    const isRecord =
      record.version === 1 &&
      [record.host, record.engine.id].every((each) => typeof each === "string") &&
      [record.epoch, record.sequence].every(Number.isInteger) &&
      [record.container, record.snapshot].every((each) => typeof (each ?? {}) === "object");
    return isRecord ? record : null;
  } catch {
    return null;
  }
}

/** Compare positions, which are pairs of epoch and sequence. */
function compare([epoch, sequence], [otherEpoch, otherSequence]) {
  return epoch - otherEpoch || sequence - otherSequence;
}

function apply(record) {
  const key = JSON.stringify([record.host, record.engine.id]);
  if (!sources.has(key)) {
    sources.set(key, { position: [0, 0], containers: new Map(), listed: null, retired: false });
  }
  const source = sources.get(key);
  const position = [record.epoch, record.sequence];
  const order = compare(position, source.position);
  if (record.type === "source_retired" && order >= 0) {
    Object.assign(source, { position, containers: new Map(), listed: null, retired: true });
    return;
  }
  if (order <= 0 || record.type === "heartbeat") {
    return; // a repetition, or a retirement that is too late
  }
  source.position = position;
  source.retired = false;
  if (RUNNING.has(record.type)) {
    source.containers.set(record.id, record.container);
    source.listed?.add(record.id);
  } else if (record.type === "exited") {
    source.containers.delete(record.id);
  } else if (record.type === "snapshot_started") {
    source.listed = new Set();
  } else if (record.type === "lost") {
    source.listed = null; // the snapshot is void
  } else if (record.type === "snapshot_completed" && source.listed) {
    for (const [id, container] of source.containers) {
      if (!source.listed.has(id) && !record.snapshot?.failed?.includes(container?.namespace)) {
        source.containers.delete(id);
      }
    }
    source.listed = null;
  }
}

let invalid = 0;
for await (const line of createInterface({ input: process.stdin })) {
  const record = decode(line);
  if (record) {
    apply(record);
  } else if (line.trim()) {
    invalid += 1;
  }
}
const result = [...sources].map(([key, { position, containers, retired }]) => {
  const [host, engine] = JSON.parse(key);
  return { host, engine, position, retired, containers: Object.fromEntries(containers) };
});
console.log(JSON.stringify({ invalid, sources: result }));
