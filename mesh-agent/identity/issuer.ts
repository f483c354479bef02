// Issuers: a root, the intermediate that signs leaves, and their keys; generated, stored, or given as files.
//
//   DIRECTORY/issuer-<id>/root.pem           key and certificate of the root
//   DIRECTORY/issuer-<id>/intermediate.pem   key and certificate of the intermediate
//   DIRECTORY/issuer-<id>/link.pem           the root once more, signed by the root before it
//
// Key and certificate share a file, so that they cannot part. <id> is the root's. The link lets a node that was
// away during a rotation recognise the new root by the old one (RFC 4210 §4.4.1, "new with old").
// Control thread.

import { createPrivateKey, type KeyObject, randomBytes } from 'node:crypto';
import { readdir, readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import {
  buildCertificate,
  type CertificateFacts,
  certificateToPem,
  isIssuedBy,
  keyToPem,
  readCertificate,
  type Signer,
} from './certificate.ts';
import { IdentityError, storageError } from './errors.ts';
import { describeKey, generateKey, kindOfKey, publicKeyInfo } from './keys.ts';
import { BACKDATE_MS } from './mint.ts';
import { splitCertificates } from './pem.ts';
import { makePrivateDirectory, readPrivateFile, writePrivateFile } from './private-files.ts';
import { rootId } from './trust-bundle.ts';

const DAY_MS = 86_400_000;
/** Lifetime of a generated root: replaced by rotation, at leisure. */
const ROOT_LIFETIME_MS = 3650 * DAY_MS;
/** Lifetime of a generated intermediate, renewed by itself at half of it. */
const INTERMEDIATE_LIFETIME_MS = 365 * DAY_MS;
const PREFIX = 'issuer-';
const STORED = /^issuer-([0-9a-f]{16})$/;

/** A root and what signs below it. */
export interface Issuer {
  /** The root's id. */
  id: string;
  root: CertificateFacts;
  /** Null: kept elsewhere; then the intermediate cannot be renewed here, nor a link be signed. */
  rootKey: KeyObject | null;
  /** What signs leaves. */
  signer: Signer;
  /** Certificates to send after a leaf: the intermediate and those above it, without the root. */
  chain: readonly CertificateFacts[];
  /** The root, signed by the root before it; null: none. */
  link: CertificateFacts | null;
  /** Whether it is stored in our own directory, and ours to renew and remove. */
  stored: boolean;
}

/** CA files of an operator, as paths. */
export interface IssuerFiles {
  /** The root's certificate, PEM. */
  rootCertificate: string;
  /** What signs, with further intermediates up to the root behind it, PEM. May be the root itself. */
  certificate: string;
  /** Its key, PEM (PKCS #8, SEC 1 or PKCS #1), not encrypted. */
  key: string;
}

/** A new root and intermediate, P-256. */
export async function generateIssuer(trustDomain: string, nowMs: number): Promise<Issuer> {
  const rootKey = await generateKey();
  const root = readCertificate(
    buildCertificate(
      {
        identity: `spiffe://${trustDomain}`,
        // Every root has a name of its own: path building goes by names.
        commonName: `Portcullis mesh root ${randomBytes(4).toString('hex')}`,
        publicKey: publicKeyInfo(rootKey),
        notBeforeMs: nowMs - BACKDATE_MS,
        notAfterMs: nowMs + ROOT_LIFETIME_MS,
        pathLength: Number.POSITIVE_INFINITY,
      },
      null,
      rootKey,
    ),
  );
  return withIntermediate({ id: rootId(root), root, rootKey, link: null, stored: true }, trustDomain, nowMs);
}

/** The issuer with a new intermediate and key under the same root. Its root key must be here. */
export async function withIntermediate(
  issuer: Omit<Issuer, 'signer' | 'chain'>,
  trustDomain: string,
  nowMs: number,
): Promise<Issuer> {
  const { root, rootKey } = issuer;
  if (rootKey === null) throw new IdentityError('ca-material', `the key of the root ${issuer.id} is not here`);
  const key = await generateKey();
  const certificate = buildCertificate(
    {
      identity: `spiffe://${trustDomain}`,
      commonName: `Portcullis mesh issuer ${randomBytes(4).toString('hex')}`,
      publicKey: publicKeyInfo(key),
      notBeforeMs: nowMs - BACKDATE_MS,
      notAfterMs: Math.min(nowMs + INTERMEDIATE_LIFETIME_MS, root.notAfterMs),
      pathLength: 0,
    },
    { certificate: root.x509.raw, key: rootKey },
    rootKey,
  );
  return { ...issuer, signer: { certificate, key }, chain: [readCertificate(certificate)] };
}

/** The issuer with a link: its root signed by the root of `old`; as it is, when that key is not here. */
export function withLink(issuer: Issuer, old: Issuer, trustDomain: string, nowMs: number): Issuer {
  if (old.rootKey === null) return issuer;
  const { root } = issuer;
  const commonName = /^CN=(.+)$/.exec(root.x509.subject)?.[1];
  // The link must bear the root's very name; only roots of the form made here can be written again.
  if (!issuer.stored || commonName === undefined) return issuer;
  const link = buildCertificate(
    {
      identity: `spiffe://${trustDomain}`,
      commonName,
      publicKey: publicKeyInfo(root.x509.publicKey),
      notBeforeMs: nowMs - BACKDATE_MS,
      notAfterMs: Math.min(root.notAfterMs, old.root.notAfterMs),
      pathLength: Number.POSITIVE_INFINITY,
    },
    { certificate: old.root.x509.raw, key: old.rootKey },
    old.rootKey,
  );
  return { ...issuer, link: readCertificate(link) };
}

/** When the first certificate of the signer's chain ends, in milliseconds since 1970. */
export function issuerEndMs({ chain, root }: Issuer): number {
  return Math.min(root.notAfterMs, ...chain.map(({ notAfterMs }) => notAfterMs));
}

/** When the intermediate is due for renewal: at half of its life. Infinity when that cannot be done here. */
export function intermediateDueMs({ chain: [intermediate], rootKey, stored }: Issuer): number {
  if (rootKey === null || !stored || intermediate === undefined) return Number.POSITIVE_INFINITY;
  return (intermediate.notBeforeMs + intermediate.notAfterMs) / 2;
}

/** Writes an issuer. Rejects with an IdentityError. */
export async function storeIssuer(directory: string, issuer: Issuer): Promise<void> {
  const path = join(directory, PREFIX + issuer.id);
  await makePrivateDirectory(path);
  const [intermediate] = issuer.chain;
  await writePrivateFile(join(path, 'intermediate.pem'), keyedPem(issuer.signer.key, intermediate ?? issuer.root));
  if (issuer.link !== null) await writePrivateFile(join(path, 'link.pem'), certificateToPem(issuer.link.x509.raw));
  // Last: a directory without it is an unfinished one.
  await writePrivateFile(join(path, 'root.pem'), keyedPem(issuer.rootKey!, issuer.root));
}

/** Reads a stored issuer; null: there is none. Rejects with an IdentityError. */
export async function loadStoredIssuer(directory: string, id: string): Promise<Issuer | null> {
  const path = join(directory, PREFIX + id);
  const rootText = await readPrivateFile(join(path, 'root.pem'));
  if (rootText === null) return null;
  await makePrivateDirectory(path);
  const text = await readPrivateFile(join(path, 'intermediate.pem'));
  if (text === null) throw new IdentityError('ca-material', `${join(path, 'intermediate.pem')} is missing`);
  const linkText = await readPrivateFile(join(path, 'link.pem'));
  const issuer = assemble(path, rootText, text, text);
  if (issuer.id !== id) throw new IdentityError('ca-material', `${path} holds the root ${issuer.id}`);
  return {
    ...issuer,
    rootKey: readKey(path, rootText, issuer.root),
    link: linkText === null ? null : readCertificate(linkText),
    stored: true,
  };
}

/** Reads an operator's CA files. Rejects with an IdentityError that names what is wrong with them. */
export async function loadIssuerFiles(files: IssuerFiles): Promise<Issuer> {
  const key = await readPrivateFile(files.key, true);
  if (key === null) throw new IdentityError('storage', `cannot read ${files.key}: it does not exist`);
  const read = (path: string): Promise<string> =>
    readFile(path, 'utf8').catch((error) => Promise.reject(storageError('cannot read', path, error)));
  return assemble(files.certificate, await read(files.rootCertificate), await read(files.certificate), key);
}

/** Ids of stored issuers, unfinished ones too. Rejects with an IdentityError. */
export async function storedIssuerIds(directory: string): Promise<string[]> {
  const names = await readdir(directory).catch((error) =>
    Promise.reject(storageError('cannot read', directory, error)),
  );
  return names.map((name) => STORED.exec(name)?.[1]).filter((id) => id !== undefined);
}

/** Removes stored issuers other than those to keep; returns the ids of the removed ones. */
export async function removeStoredIssuers(directory: string, keep: readonly (string | null)[]): Promise<string[]> {
  const stale = (await storedIssuerIds(directory)).filter((id) => !keep.includes(id));
  for (const id of stale) await rm(join(directory, PREFIX + id), { recursive: true, force: true });
  return stale;
}

function assemble(path: string, rootText: string, chainText: string, keyText: string): Issuer {
  const roots = splitCertificates(rootText);
  if (roots.length !== 1) throw refusal(path, `there are ${roots.length} root certificates; give exactly one`);
  const root = readCertificate(roots[0]!);
  if (!root.isCa || !isIssuedBy(root, root)) throw refusal(path, 'the root is not a self-signed CA');
  const texts = splitCertificates(chainText);
  const all = texts.map((pem) => readCertificate(pem));
  const [signer] = all;
  if (signer === undefined) throw refusal(path, 'there is no certificate');
  // The root may stand at the end of the chain; it is never sent.
  const chain = all.filter(({ fingerprint }) => fingerprint !== root.fingerprint);
  for (const [i, certificate] of chain.entries()) {
    if (!certificate.isCa) throw refusal(path, `certificate ${i} of the chain is not a CA`);
    if (!isIssuedBy(certificate, chain[i + 1] ?? root)) {
      throw refusal(path, `certificate ${i} of the chain is not signed by the next one, or the root`);
    }
  }
  if (signer.keyId === null)
    throw refusal(path, 'the signing certificate has no subject key identifier (RFC 5280 §4.2.1.2)');
  const key = readKey(path, keyText, signer);
  return {
    id: rootId(root),
    root,
    rootKey: signer === root || signer.fingerprint === root.fingerprint ? key : null,
    signer: { certificate: signer.x509.raw, key },
    chain,
    link: null,
    stored: false,
  };
}

function readKey(path: string, text: string, certificate: CertificateFacts): KeyObject {
  let key: KeyObject;
  try {
    key = createPrivateKey(text);
  } catch {
    // The parser's message may quote the key.
    throw refusal(path, 'its private key cannot be parsed');
  }
  if (kindOfKey(key) === null) throw refusal(path, `its key is ${describeKey(key)}`);
  if (!certificate.x509.checkPrivateKey(key)) throw refusal(path, 'its private key is not that of its certificate');
  return key;
}

function keyedPem(key: KeyObject, { x509 }: CertificateFacts): string {
  return keyToPem(key) + certificateToPem(x509.raw);
}

function refusal(path: string, cause: string): IdentityError {
  return new IdentityError('ca-material', `the CA in ${path} cannot be used: ${cause}`);
}
