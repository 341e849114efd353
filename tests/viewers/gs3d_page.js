// SPDX-License-Identifier: Apache-2.0
// Draws one splat file with GaussianSplats3D.
import * as GS3D from "@mkkellogg/gaussian-splats-3d";
import * as THREE from "three";
import { cameraOf, rendererOf, settle } from "./page.js";

window.draw = async (job) => {
  const renderer = rendererOf(THREE, job);
  const camera = cameraOf(THREE, job);
  const viewer = new GS3D.Viewer({
    selfDrivenMode: false,
    useBuiltInControls: false,
    renderer,
    camera,
    rootElement: document.body,
    sharedMemoryForWorkers: false, // it would hang without the headers of an isolated page
    gpuAcceleratedSort: false,
    sceneRevealMode: GS3D.SceneRevealMode.Instant, // else the fade-in is what is seen
    sphericalHarmonicsDegree: 2, // all that it can
  });
  await viewer.addSplatScene(job.url, {
    showLoadingUI: false,
    splatAlphaRemovalThreshold: 1,
    progressiveLoad: job.progressive,
  });
  const frame = () => {
    viewer.update();
    viewer.render();
  };
  return settle(renderer, frame, () => viewer.sortRunning);
};
