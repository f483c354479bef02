// Programs in Go that tests speak to: built once per machine, kept in the folder of temporary files.
//
//   node test/support/go-programs.ts      builds all of them, quietly and with little priority

import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, statSync } from 'node:fs';
import { setPriority, tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

/** Where a program, or a folder of them, lies; or why there is none. */
export type Built = { path: string } | { missing: string };

/** Compiling takes a minute or two of one core on a machine that has never done it. */
const BUILD_TIMEOUT_MS = 200_000;

const PEBBLE = 'github.com/letsencrypt/pebble/v2';
const PEBBLE_VERSION = 'v2.10.1';

const peerSource = fileURLToPath(new URL('../integration/mesh/control-peer', import.meta.url));

/** A folder with `pebble` and `pebble-challtestsrv`: the test CA of Let's Encrypt, and its DNS server. */
export function pebblePrograms(): Built {
  return built(`pebble-${PEBBLE_VERSION}`, (path) => {
    const packages = ['pebble', 'pebble-challtestsrv'].map((name) => `${PEBBLE}/cmd/${name}@${PEBBLE_VERSION}`);
    return go(['install', ...packages], { GOBIN: path });
  });
}

/** A folder with `control-peer`: a client of the mesh's control plane that shares no code with it. */
export function controlPeer(): Built {
  const hash = createHash('sha256');
  for (const file of readdirSync(peerSource).sort()) hash.update(file).update(readFileSync(join(peerSource, file)));
  return built(`control-peer-${hash.digest('hex').slice(0, 16)}`, (path) =>
    go(
      ['build', '-o', join(path, 'control-peer'), '.'],
      { GOFLAGS: '-mod=readonly -buildvcs=false', GOTOOLCHAIN: 'local' },
      peerSource,
    ),
  );
}

/** The folder `name` of this user's, made by `build` if it is not there; `build` says what went wrong, or nothing. */
function built(name: string, build: (path: string) => string): Built {
  const path = join(tmpdir(), `portcullis-${name}-${process.getuid?.() ?? 0}`);
  if (!existsSync(path)) {
    if (spawnSync('go', ['version']).status !== 0) return { missing: 'Go is not installed' };
    const making = `${path}.${process.pid}`;
    mkdirSync(making, { mode: 0o700 });
    const problem = build(making);
    if (problem !== '') {
      rmSync(making, { recursive: true });
      return { missing: `it could not be built: ${problem}` };
    }
    try {
      renameSync(making, path);
    } catch {
      // Somebody else was faster.
      rmSync(making, { recursive: true });
    }
  }
  // The folder of temporary files is everybody's; what lies there under this name must be ours.
  return statSync(path).uid === process.getuid?.() ? { path } : { missing: `${path} belongs to another user` };
}

function go(args: string[], env: NodeJS.ProcessEnv, cwd?: string): string {
  const { status, stderr } = spawnSync('go', args, {
    cwd,
    env: { ...process.env, ...env },
    encoding: 'utf8',
    timeout: BUILD_TIMEOUT_MS,
  });
  return status === 0 ? '' : (stderr.trim().split('\n').at(-1) ?? `go ended with ${status}`);
}

if (import.meta.main) {
  setPriority(10);
  pebblePrograms();
  controlPeer();
}
