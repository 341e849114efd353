// SPDX-License-Identifier: Apache-2.0
// What the pages share: our camera, a canvas that can be read, and the wait for a still picture.

export function rendererOf(THREE, job) {
  const canvas = document.createElement("canvas");
  document.body.appendChild(canvas);
  const renderer = new THREE.WebGLRenderer({ canvas, antialias: false, preserveDrawingBuffer: true });
  renderer.setPixelRatio(1);
  renderer.setSize(job.width, job.height, false);
  renderer.setClearColor(0x000000, 1);
  return renderer;
}

export function cameraOf(THREE, job) {
  const camera = new THREE.PerspectiveCamera(job.fovY, job.width / job.height, 0.01, 100);
  // Rows of the matrix from camera (x right, y up, looks along -z) to the file's frame.
  const matrix = new THREE.Matrix4().set(...job.camToFile.flat());
  matrix.decompose(camera.position, camera.quaternion, camera.scale);
  camera.updateMatrixWorld(true);
  return camera;
}

// Viewers sort in a worker and may show nothing, or a half, for many frames: what is waited for is
// a picture that is not blank and has been the same for a second in which the viewer was not at work
// (a busy machine may sort for longer). shots.mjs ends a wait for nothing.
export async function settle(renderer, frame, busy = () => false) {
  const gl = renderer.getContext();
  const pixels = new Uint8Array(4 * gl.drawingBufferWidth * gl.drawingBufferHeight);
  let last = 0;
  let since = performance.now();
  for (;;) {
    await new Promise((done) => requestAnimationFrame(done));
    frame();
    gl.readPixels(0, 0, gl.drawingBufferWidth, gl.drawingBufferHeight, gl.RGBA, gl.UNSIGNED_BYTE, pixels);
    let sum = 0;
    let light = 0;
    for (let i = 0; i < pixels.length; i++) {
      if (i % 4 !== 3) light += pixels[i];
      sum = (Math.imul(sum, 31) + pixels[i]) | 0;
    }
    if (sum !== last || busy()) since = performance.now();
    last = sum;
    if (light > 0 && performance.now() - since > 1000) return renderer.domElement.toDataURL("image/png");
    await new Promise((done) => setTimeout(done, 30));
  }
}
