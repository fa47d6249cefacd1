// SPDX-License-Identifier: Apache-2.0
// Copyright The Tidemill authors

// Asks the real Mermaid parser about diagrams.
//
//   stdin   a JSON array of Mermaid texts
//   stdout  a JSON array, one entry a text: {"ok": true, "type": "sequence"} or {"ok": false, "error": "…"}
//   exit    0 whenever every text got its answer, valid or not; 1 when the question itself made no sense

import { text } from "node:stream/consumers";
import { JSDOM } from "jsdom";

// Mermaid cleans labels through the DOM and takes hold of it while being imported, so the window has to come first.
// Option is how it tells whether the word after `box` is a colour.
const { window } = new JSDOM("");
Object.assign(globalThis, { window, document: window.document, Option: window.Option });
const { default: mermaid } = await import("mermaid");

async function verdict(diagram) {
  try {
    const { diagramType } = await mermaid.parse(diagram);
    return { ok: true, type: diagramType };
  } catch (error) {
    return { ok: false, error: String(error?.message ?? error) };
  }
}

const diagrams = JSON.parse(await text(process.stdin));
if (!Array.isArray(diagrams) || diagrams.some((diagram) => typeof diagram !== "string")) {
  throw new TypeError("expected a JSON array of strings on stdin");
}

// One after the other: the parser keeps the diagram at hand in module state.
const verdicts = [];
for (const diagram of diagrams) verdicts.push(await verdict(diagram));
process.stdout.write(JSON.stringify(verdicts) + "\n");
