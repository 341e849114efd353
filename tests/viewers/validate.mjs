// SPDX-License-Identifier: Apache-2.0
// Khronos' validator: node validate.mjs FILE prints its report.
import validator from "gltf-validator";
import { readFileSync } from "node:fs";

const report = await validator.validateBytes(new Uint8Array(readFileSync(process.argv[2])));
process.stdout.write(JSON.stringify(report));
