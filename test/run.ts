// Runs every test file of the project and prints a summary: `npm test` after lint and types.
//
//   node test/run.ts [PATTERN...]   only files whose path contains one of the patterns
//
// Files run in three rounds, for two cores: most of them three at a time, as each waits for its processes now and then;
// those that only burn CPU (whose time is simulated or of no interest) two at a time; and one at a time those that look
// at load or compare what happens in time, so that no test waits behind another's load.

import { spawn } from 'node:child_process';
import { readdirSync } from 'node:fs';
import { join, relative } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('..', import.meta.url));

/** A file that runs longer than this hangs. */
const FILE_TIMEOUT_MS = 240_000;

/** The whole suite is the same in every run; a file that is run by itself takes new seeds, and prints them. */
const SEEDS = { FUZZ_SEED: '20261121', CORE_SEED: '20261121', SEED: '20261121' };

/**
 * Where compiled modules are kept from file to file and from run to run, which halves the start of a file: that of the
 * launcher, so that each warms it up for the other.
 */
const COMPILE_CACHE = process.env.NODE_COMPILE_CACHE ?? join(root, 'node_modules/.cache/portcullis');

/** Files that burn CPU and do not mind company. */
const BURNING = /^test\/(sim|fuzz|integration\/compression)/;

/** Files that run alone, one after another: they look at load, or at what happens first. */
const ALONE: RegExp[] = [
  /^test\/(chaos|conformance)\//,
  /^test\/integration\/(acme|adaptive|overload|mesh\/(control-peer|kubernetes-cluster))/,
];

interface FileResult {
  file: string;
  passed: number;
  failed: number;
  skipped: number;
  durationMs: number;
  /** What to show when the file failed, and the reasons of skipped tests. */
  output: string;
  ok: boolean;
}

function testFiles(patterns: string[]): string[] {
  const files = readdirSync(join(root, 'test'), { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile() && entry.name.endsWith('.test.ts'))
    .map((entry) => relative(root, join(entry.parentPath, entry.name)))
    .sort();
  return patterns.length === 0 ? files : files.filter((file) => patterns.some((pattern) => file.includes(pattern)));
}

function runFile(file: string): Promise<FileResult> {
  const startMs = performance.now();
  return new Promise((resolve) => {
    // --test-force-exit is not used: a file that keeps a handle open leaks something.
    const child = spawn(process.execPath, ['--test-reporter=tap', file], {
      cwd: root,
      stdio: ['ignore', 'pipe', 'pipe'],
      env: { ...SEEDS, ...process.env, NODE_COMPILE_CACHE: COMPILE_CACHE },
    });
    let output = '';
    child.stdout.on('data', (chunk) => (output += chunk));
    child.stderr.on('data', (chunk) => (output += chunk));
    let hung = false;
    const timer = setTimeout(() => {
      hung = true;
      child.kill('SIGKILL');
    }, FILE_TIMEOUT_MS);
    child.on('close', (code) => {
      clearTimeout(timer);
      const count = (name: string) => Number(new RegExp(`^# ${name} (\\d+)$`, 'm').exec(output)?.[1] ?? 0);
      const failed = count('fail') + count('cancelled');
      const passed = count('pass');
      const skipped = count('skipped') + count('todo');
      if (hung) output += `\nkilled after ${FILE_TIMEOUT_MS / 1000} s without an end\n`;
      // A file without a single test is a mistake, not a success.
      const ok = code === 0 && failed === 0 && !hung && passed + skipped > 0;
      resolve({ file, passed, failed, skipped, durationMs: performance.now() - startMs, output, ok });
    });
  });
}

/** The output without the tests that passed: the end of a long log is often all that one gets to see. */
function failures(output: string): string {
  return output
    .replace(/^# Subtest: .*\n(?=(?: .*\n)*ok )/gm, '')
    .replace(/^ok \d+ - .*\n {2}---\n(?: .*\n)*? {2}\.\.\.\n/gm, '');
}

function report(result: FileResult): void {
  const { file, passed, skipped, durationMs, output, ok } = result;
  const seconds = (durationMs / 1000).toFixed(1);
  console.log(
    `${ok ? 'ok  ' : 'FAIL'} ${file} (${passed} passed${skipped > 0 ? `, ${skipped} skipped` : ''}, ${seconds} s)`,
  );
  for (const [, name, reason] of output.matchAll(/^ *ok \d+ - (.*?) # SKIP ?(.*)$/gm)) {
    console.log(`       skipped: ${name}${reason ? ` (${reason})` : ''}`);
  }
  if (!ok) console.log(failures(output).replace(/^/gm, '       '));
}

async function runAll(files: string[], concurrency: number): Promise<FileResult[]> {
  const results: FileResult[] = [];
  const queue = [...files];
  const lane = async (): Promise<void> => {
    for (let file = queue.shift(); file !== undefined; file = queue.shift()) {
      const result = await runFile(file);
      report(result);
      results.push(result);
    }
  };
  await Promise.all(Array.from({ length: concurrency }, lane));
  return results;
}

const files = testFiles(process.argv.slice(2));
/** Files that need programs in Go come last: these are built meanwhile. */
const needsGo = (file: string): boolean => /integration\/(acme|mesh\/control-peer)\.test\.ts$/.test(file);
const isSerial = (file: string): boolean => ALONE.some((pattern) => pattern.test(file));
const startMs = performance.now();
const results = [
  ...(await runAll(
    files.filter((file) => !isSerial(file) && !BURNING.test(file)),
    3,
  )),
  ...(await runAll(
    files.filter((file) => BURNING.test(file)),
    2,
  )),
];
const serial = files.filter(isSerial);
const programs = serial.some(needsGo)
  ? spawn(process.execPath, [join(root, 'test/support/go-programs.ts')], { stdio: 'ignore' })
  : null;
const programsBuilt = programs === null ? Promise.resolve() : new Promise((resolve) => programs.on('close', resolve));
results.push(
  ...(await runAll(
    serial.filter((file) => !needsGo(file)),
    1,
  )),
);
await programsBuilt;
results.push(...(await runAll(serial.filter(needsGo), 1)));

const sum = (pick: (result: FileResult) => number): number =>
  results.reduce((total, result) => total + pick(result), 0);
const broken = results.filter((result) => !result.ok);
console.log(`\n${results.length} files in ${((performance.now() - startMs) / 1000).toFixed(0)} s`);
for (const { file } of broken) console.log(`FAILED ${file}`);
console.log(`${sum((r) => r.passed)} passed, ${sum((r) => r.failed)} failed, ${sum((r) => r.skipped)} skipped`);
process.exit(broken.length === 0 && results.length > 0 ? 0 : 1);
