// SPDX-License-Identifier: Apache-2.0
// three.js's own loader of KHR_gaussian_splatting: node gltf_splats.mjs FILE prints what it holds.
import { readFileSync } from "node:fs";
import { GLTFGaussianSplatLoaderExtension } from "three/addons/loaders/GLTFGaussianSplatLoaderExtension.js";
import { GLTFLoader } from "three/addons/loaders/GLTFLoader.js";

globalThis.self ??= globalThis;
const raw = readFileSync(process.argv[2]);
const loader = new GLTFLoader();
loader.register((parser) => new GLTFGaussianSplatLoaderExtension(parser));
const { scene } = await loader.parseAsync(new Uint8Array(raw).buffer, "");
const found = [];
scene.traverse((thing) => {
  const held = thing.splatGeometry?.attributes;
  if (!held) return;
  const columns = Object.entries(held).map(([name, { array }]) => [name, Array.from(array)]);
  found.push({ name: thing.name, kind: thing.type, columns: Object.fromEntries(columns) });
});
process.stdout.write(JSON.stringify(found));
