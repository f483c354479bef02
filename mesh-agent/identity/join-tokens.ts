// Join tokens: how a plain host proves for the first time that it belongs to the mesh.
//
//   DIRECTORY/<id>.json   what the token is good for, and the SHA-256 of its secret
//   DIRECTORY/<id>.uses   how often it has been used
//
// The secret has 256 random bits, so that a plain hash is as good as a slow one. Two files, because the
// command line writes the one (and removes it) while the control plane counts in the other; both are read
// at every use, so that a revoked token is refused at once. Control thread.

import { createHash, randomBytes, timingSafeEqual } from 'node:crypto';
import { readdir, unlink } from 'node:fs/promises';
import { join } from 'node:path';
import { type Attestor, bearerToken, type Caller, type Evidence } from './attestation.ts';
import { IdentityError, storageError } from './errors.ts';
import { makePrivateDirectory, readPrivateFile, writePrivateFile } from './private-files.ts';
import { formatNodeIdentity, formatWorkloadIdentity, isNamespaceName, isSubdomain } from './spiffe.ts';

/** How every token begins, so that secret scanners can find lost ones. */
const PREFIX = 'pj1_';
const TOKEN = /^pj1_([0-9a-f]{8})_([A-Za-z0-9_-]{43})$/;
const SECRET_BYTES = 32;

/** What a token is good for. At least one of node, namespaces and service accounts is given. */
export interface TokenGrant {
  /** The node that joins with it: its own identity, and those of workloads that run there. */
  node?: string;
  /** Namespaces of which every service account may be had. */
  namespaces?: readonly string[];
  /** Service accounts that may be had. */
  serviceAccounts?: readonly { namespace: string; name: string }[];
  /** End of its validity, in milliseconds since 1970. */
  expiresMs: number;
  /** How many certificates it is good for; null: any number. */
  uses: number | null;
}

/** A token as it is listed: everything but its secret. */
export interface TokenInfo extends TokenGrant {
  id: string;
  used: number;
}

interface StoredToken extends TokenGrant {
  format: 1;
  /** SHA-256 of the secret, hexadecimal. */
  hash: string;
}

/** The tokens of one mesh, and the attestor that takes them. */
export class JoinTokens implements Attestor {
  private readonly directory: string;
  private readonly trustDomain: string;
  private readonly nowMs: () => number;
  /** Uses are counted one after another. */
  private counting: Promise<unknown> = Promise.resolve();

  /** Private directory, made when it is not there. `nowMs`: milliseconds since 1970. */
  constructor(directory: string, trustDomain: string, nowMs: () => number = Date.now) {
    this.directory = directory;
    this.trustDomain = trustDomain;
    this.nowMs = nowMs;
  }

  /** Makes a token; returns its text, which is not kept. Rejects with an IdentityError. */
  async create(grant: TokenGrant): Promise<string> {
    checkGrant(grant);
    await makePrivateDirectory(this.directory);
    const id = randomBytes(4).toString('hex');
    const secret = randomBytes(SECRET_BYTES).toString('base64url');
    const stored: StoredToken = { format: 1, hash: hashOf(secret).toString('hex'), ...grant };
    await writePrivateFile(this.path(id), `${JSON.stringify(stored, null, 1)}\n`);
    return `${PREFIX}${id}_${secret}`;
  }

  /** All tokens, expired ones too. Rejects with an IdentityError. */
  async list(): Promise<TokenInfo[]> {
    await makePrivateDirectory(this.directory);
    const names = (await readdir(this.directory)).filter((name) => /^[0-9a-f]{8}\.json$/.test(name)).sort();
    const tokens: TokenInfo[] = [];
    for (const name of names) {
      const id = name.slice(0, 8);
      const stored = await this.read(id);
      if (stored === null) continue;
      const { hash: _, format: __, ...grant } = stored;
      tokens.push({ id, ...grant, used: await this.used(id) });
    }
    return tokens;
  }

  /** Revokes a token by its id; whether there was one. Certificates that it got stay valid until they expire. */
  async revoke(id: string): Promise<boolean> {
    if (!/^[0-9a-f]{8}$/.test(id)) return false;
    try {
      await unlink(this.path(id));
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return false;
      throw storageError('cannot remove', this.path(id), error);
    }
    await unlink(this.usesPath(id)).catch(() => {});
    return true;
  }

  /** See Attestor. */
  async authenticate(evidence: Evidence): Promise<Caller | null> {
    const token = bearerToken(evidence);
    if (token === undefined || !token.startsWith(PREFIX)) return null;
    const [, id, secret] = TOKEN.exec(token) ?? [];
    const stored = id === undefined ? null : await this.read(id);
    // An unknown id takes as long as a wrong secret, and gets the same answer.
    const expected = stored === null ? Buffer.alloc(32) : Buffer.from(stored.hash, 'hex');
    const matches = timingSafeEqual(hashOf(secret ?? ''), expected);
    if (stored === null || !matches) throw refusal('the join token is not known here');
    if (stored.expiresMs <= this.nowMs()) throw refusal(`the join token ${id} has expired`);
    if (stored.uses !== null && (await this.used(id!)) >= stored.uses) throw usedUp(id!);
    return this.caller(id!, stored);
  }

  private caller(id: string, { node, namespaces = [], serviceAccounts = [], uses }: StoredToken): Caller {
    const { trustDomain } = this;
    const identities = serviceAccounts.map(({ namespace, name }) =>
      formatWorkloadIdentity({ trustDomain, namespace, serviceAccount: name }),
    );
    if (node !== undefined) identities.unshift(formatNodeIdentity(trustDomain, node));
    const caller: Caller = {
      name: `join token ${id}${node === undefined ? '' : ` of node ${node}`}`,
      identities,
      namespaces,
      node: node ?? null,
    };
    if (uses === null) return caller;
    return {
      ...caller,
      claim: async () => {
        await this.count(id, 1, uses);
        return () => this.count(id, -1, uses);
      },
    };
  }

  /** Adds to the uses of a token, on disk before it resolves: a crash costs a use, and never gives one away. */
  private count(id: string, step: 1 | -1, uses: number): Promise<void> {
    const counted = this.counting.then(async () => {
      const used = await this.used(id);
      if (step === 1 && used >= uses) throw usedUp(id);
      await writePrivateFile(this.usesPath(id), `${Math.max(0, used + step)}\n`);
    });
    this.counting = counted.catch(() => {});
    return counted;
  }

  private async used(id: string): Promise<number> {
    const text = await readPrivateFile(this.usesPath(id));
    if (text === null) return 0;
    const used = Number(text.trim());
    // A damaged count is a token that cannot be used any more.
    return /^\d{1,15}\n?$/.test(text) ? used : Number.POSITIVE_INFINITY;
  }

  private async read(id: string): Promise<StoredToken | null> {
    const text = await readPrivateFile(this.path(id));
    if (text === null) return null;
    try {
      const stored = JSON.parse(text) as StoredToken;
      if (stored.format !== 1 || !/^[0-9a-f]{64}$/.test(stored.hash)) throw new Error();
      checkGrant(stored);
      return stored;
    } catch {
      throw new IdentityError(
        'storage',
        `the join token in ${this.path(id)} is damaged`,
        'remove the file and make a new token',
      );
    }
  }

  private path(id: string): string {
    return join(this.directory, `${id}.json`);
  }

  private usesPath(id: string): string {
    return join(this.directory, `${id}.uses`);
  }
}

function checkGrant({ node, namespaces = [], serviceAccounts = [], expiresMs, uses }: TokenGrant): void {
  const wrong = (cause: string): IdentityError =>
    new IdentityError('spiffe-id', `the join token is not made: ${cause}`);
  if (node === undefined && namespaces.length === 0 && serviceAccounts.length === 0) {
    throw wrong('it is for no node, namespace or service account');
  }
  if (node !== undefined && !isSubdomain(node)) throw wrong(`${JSON.stringify(node)} is not the name of a node`);
  for (const namespace of [...namespaces, ...serviceAccounts.map((account) => account.namespace)]) {
    if (!isNamespaceName(namespace)) throw wrong(`${JSON.stringify(namespace)} is not the name of a namespace`);
  }
  for (const { name } of serviceAccounts) {
    if (!isSubdomain(name)) throw wrong(`${JSON.stringify(name)} is not the name of a service account`);
  }
  if (!Number.isFinite(expiresMs)) throw wrong('it has no end');
  if (uses !== null && !(Number.isSafeInteger(uses) && uses > 0)) throw wrong('its number of uses is not positive');
}

function hashOf(secret: string): Buffer {
  return createHash('sha256').update(secret).digest();
}

function usedUp(id: string): IdentityError {
  return refusal(`the join token ${id} is used up`);
}

function refusal(cause: string): IdentityError {
  return new IdentityError('unauthenticated', cause, 'make a new join token for the node');
}
