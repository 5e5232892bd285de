// Makes a component of a program in JavaScript: `node build.mjs SOURCE WIT OUT`.

import { readFile, writeFile } from 'node:fs/promises';
import { componentize } from '@bytecodealliance/componentize-js';

const [source, witPath, out] = process.argv.slice(2);
const text = await readFile(source, 'utf8');
const { component } = await componentize(text, { witPath, worldName: 'app', sourceName: 'app.js' });
await writeFile(out, component);
