// What the tests of identities share: private directories, the openssl command line, a clock to turn by hand.

import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { TestContext } from 'node:test';
import type { Clock } from '../../../../core/process/clock.ts';
import type { Log, LogFields } from '../../../../core/workers/log.ts';
import { MeshAuthority } from '../../../../mesh-agent/identity/authority.ts';
import { createSigningRequest } from '../../../../mesh-agent/identity/csr.ts';
import { IdentityError, type IdentityErrorCode } from '../../../../mesh-agent/identity/errors.ts';
import type { IssuerFiles } from '../../../../mesh-agent/identity/issuer.ts';
import { generateKey } from '../../../../mesh-agent/identity/keys.ts';

export const TRUST_DOMAIN = 'mesh.example';
export const CART = `spiffe://${TRUST_DOMAIN}/ns/shop/sa/cart`;

/** A directory that is removed after the test. */
export function temporaryDirectory(t: TestContext): string {
  const path = mkdtempSync(join(tmpdir(), 'portcullis-identity-'));
  t.after(() => rmSync(path, { recursive: true, force: true }));
  return path;
}

/** Runs openssl; returns its output. Throws with what it said when it fails. */
export function openssl(args: string[], input?: string): string {
  return execFileSync('openssl', args, { encoding: 'utf8', stdio: 'pipe', ...(input === undefined ? {} : { input }) });
}

/** Verifies a chain (leaf first) as strictly as openssl can, for a purpose. Throws when it is not right. */
export function verifyWithOpenssl(directory: string, chain: readonly string[], roots: string, purpose: string): void {
  const write = (name: string, text: string): string => {
    const path = join(directory, name);
    writeFileSync(path, text);
    return path;
  };
  const [leaf, ...above] = chain;
  const untrusted = above.length === 0 ? [] : ['-untrusted', write('above.pem', above.join(''))];
  openssl([
    ...['verify', '-x509_strict', '-purpose', purpose, '-CAfile', write('roots.pem', roots), '-no-CApath'],
    ...untrusted,
    write('leaf.pem', leaf!),
  ]);
}

/** An authority in a directory of its own, closed after the test. */
export async function openAuthority(
  t: TestContext,
  options: Partial<Parameters<typeof MeshAuthority.open>[0]> = {},
): Promise<MeshAuthority> {
  const authority = await MeshAuthority.open({
    directory: options.directory ?? temporaryDirectory(t),
    trustDomain: TRUST_DOMAIN,
    log: () => {},
    ...options,
  });
  t.after(() => authority.close());
  return authority;
}

/** A request for an identity with a new key. */
export async function requestFor(identity: string): Promise<string> {
  return createSigningRequest(identity, await generateKey());
}

/** For assert.throws and assert.rejects: an IdentityError of a code, whose message matches. */
export function refusal(code: IdentityErrorCode, pattern = /./): (error: unknown) => boolean {
  return (error) => {
    if (!(error instanceof IdentityError)) throw error;
    if (error.code !== code || !pattern.test(error.message)) {
      throw new Error(`${error.code}: ${error.message}; expected ${code} ${pattern}`);
    }
    return true;
  };
}

/** A random number generator that repeats itself from a seed (mulberry32). */
export function seeded(seed: number): () => number {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

/** A clock that stands still until it is turned; timers fire in order. */
export class ManualClock implements Clock {
  private timeMs: number;
  private timers: { atMs: number; callback: () => void }[] = [];
  readonly random: () => number;

  constructor(timeMs = Date.now(), random: () => number = () => 0.5) {
    this.timeMs = timeMs;
    this.random = random;
  }

  nowMs(): number {
    return this.timeMs;
  }

  setTimer(callback: () => void, delayMs: number): unknown {
    const timer = { atMs: this.timeMs + delayMs, callback };
    this.timers.push(timer);
    return timer;
  }

  clearTimer(timer: unknown): void {
    this.timers = this.timers.filter((other) => other !== timer);
  }

  /** Lets time pass; `settle` runs after every timer, so that what it began can go on. */
  async advance(durationMs: number, settle: () => Promise<unknown> = () => turns(20)): Promise<void> {
    const endMs = this.timeMs + durationMs;
    await settle();
    for (;;) {
      const due = this.timers.filter(({ atMs }) => atMs <= endMs).sort((a, b) => a.atMs - b.atMs)[0];
      if (due === undefined) break;
      this.clearTimer(due);
      this.timeMs = Math.max(this.timeMs, due.atMs);
      due.callback();
      await settle();
    }
    this.timeMs = endMs;
  }
}

/** Some turns of the event loop. */
export async function turns(count: number): Promise<void> {
  for (let i = 0; i < count; i++) await new Promise((resolve) => setImmediate(resolve));
}

/** Resolves as soon as the condition holds; rejects after a time that only a broken program needs. */
export async function until(condition: () => boolean): Promise<void> {
  const endMs = performance.now() + 60_000;
  while (!condition()) {
    if (performance.now() > endMs) throw new Error(`never happened: ${condition}`);
    await new Promise((resolve) => setTimeout(resolve, 2));
  }
}

/** A log that remembers its lines. */
export function recordingLog(): { log: Log; lines: { level: string; message: string; fields: LogFields }[] } {
  const lines: { level: string; message: string; fields: LogFields }[] = [];
  return { lines, log: (level, message, fields = {}) => lines.push({ level, message, fields }) };
}

/** An operator's CA, made by openssl: a root with RSA, and an intermediate with P-384. */
export function operatorCa(directory: string, name: string): IssuerFiles {
  const at = (file: string): string => join(directory, `${name}-${file}`);
  const rootConfig =
    '[v3]\nbasicConstraints=critical,CA:true\nkeyUsage=critical,keyCertSign,cRLSign\nsubjectKeyIdentifier=hash\n[req]\ndistinguished_name=dn\n[dn]\n';
  writeFileSync(at('root.cnf'), rootConfig);
  openssl([
    'req',
    '-x509',
    '-newkey',
    'rsa:2048',
    '-nodes',
    '-keyout',
    at('root.key'),
    '-out',
    at('root.pem'),
    '-days',
    '3650',
    '-subj',
    `/O=Example/CN=${name} root`,
    '-config',
    at('root.cnf'),
    '-extensions',
    'v3',
  ]);
  openssl([
    'req',
    '-new',
    '-newkey',
    'ec',
    '-pkeyopt',
    'ec_paramgen_curve:P-384',
    '-nodes',
    '-keyout',
    at('ca.key'),
    '-out',
    at('ca.csr'),
    '-subj',
    `/O=Example/CN=${name} issuer`,
    '-config',
    at('root.cnf'),
  ]);
  writeFileSync(
    at('ca.cnf'),
    'basicConstraints=critical,CA:true,pathlen:0\nkeyUsage=critical,keyCertSign\nsubjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n',
  );
  openssl([
    'x509',
    '-req',
    '-in',
    at('ca.csr'),
    '-CA',
    at('root.pem'),
    '-CAkey',
    at('root.key'),
    '-days',
    '365',
    '-out',
    at('ca.pem'),
    '-extfile',
    at('ca.cnf'),
    '-set_serial',
    '7',
  ]);
  return { rootCertificate: at('root.pem'), certificate: at('ca.pem'), key: at('ca.key') };
}
