// SPDX-License-Identifier: Apache-2.0
// Draws one splat file with Spark.
import { SparkRenderer, SplatMesh } from "@sparkjsdev/spark";
import * as THREE from "three";
import { cameraOf, rendererOf, settle } from "./page.js";

window.draw = async (job) => {
  const renderer = rendererOf(THREE, job);
  const camera = cameraOf(THREE, job);
  const scene = new THREE.Scene();
  scene.add(new SparkRenderer({ renderer }));
  const splats = new SplatMesh({ url: job.url });
  scene.add(splats); // as the file says: no turn of its own
  await splats.initialized;
  return settle(renderer, () => renderer.render(scene, camera));
};
