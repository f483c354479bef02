// Certificates for tests, made at test time: authorities, servers, clients, expired ones. Encoded
// here in DER, since neither node:crypto nor an old openssl command line can make all of them.
// Source: RFC 5280 §4.1, X.690.

import { createPublicKey, generateKeyPairSync, type KeyObject, randomBytes, sign } from 'node:crypto';

export interface Certificate {
  pem: string;
  keyPem: string;
  key: KeyObject;
  name: string;
}

export interface CertificateOptions {
  name: string;
  /** Default: self-signed. */
  issuer?: Certificate;
  keyType?: 'ec' | 'rsa';
  ca?: boolean;
  /** `dns:`, `ip:` (IPv4) or `uri:` and a name. */
  names?: string[];
  /** Extended key usage. Default: both. */
  usage?: 'server' | 'client';
  /** Days from now. */
  fromDays?: number;
  toDays?: number;
  /** ACME challenge digest (RFC 8737 §3): 32 bytes. */
  acmeDigest?: Uint8Array;
  /** Breaks the signature. */
  badSignature?: boolean;
}

const DAY_MS = 86_400_000;

function tlv(tag: number, ...parts: Uint8Array[]): Buffer {
  const body = Buffer.concat(parts);
  const { length } = body;
  const head = length < 128 ? [length] : length < 256 ? [0x81, length] : [0x82, length >> 8, length & 255];
  return Buffer.concat([Buffer.from([tag, ...head]), body]);
}

const sequence = (...parts: Uint8Array[]): Buffer => tlv(0x30, ...parts);
const octets = (bytes: Uint8Array): Buffer => tlv(0x04, bytes);
const bits = (bytes: Uint8Array): Buffer => tlv(0x03, Buffer.of(0), bytes);

function oid(dotted: string): Buffer {
  const [first, second, ...rest] = dotted.split('.').map(Number);
  const bytes = [first * 40 + second];
  for (const part of rest) {
    const groups = [part & 127];
    for (let value = part >> 7; value > 0; value >>= 7) groups.unshift((value & 127) | 128);
    bytes.push(...groups);
  }
  return tlv(0x06, Buffer.from(bytes));
}

function time(ms: number): Buffer {
  const text = new Date(ms).toISOString().replace(/[-:T]|\.\d+/g, '');
  return tlv(0x18, Buffer.from(text));
}

function distinguishedName(name: string): Buffer {
  return sequence(tlv(0x31, sequence(oid('2.5.4.3'), tlv(0x0c, Buffer.from(name)))));
}

function extension(id: string, critical: boolean, value: Uint8Array): Buffer {
  return sequence(oid(id), ...(critical ? [tlv(0x01, Buffer.of(255))] : []), octets(value));
}

function generalName(name: string): Buffer {
  const [, kind, value] = /^(\w+):(.*)$/.exec(name)!;
  if (kind === 'dns') return tlv(0x82, Buffer.from(value));
  if (kind === 'uri') return tlv(0x86, Buffer.from(value));
  return tlv(0x87, Buffer.from(value.split('.').map(Number)));
}

/** RSA keys take long to make: one serves all certificates of a test file. */
let rsaKey: KeyObject | undefined;

function makeKey(type: 'ec' | 'rsa'): KeyObject {
  if (type === 'ec') return generateKeyPairSync('ec', { namedCurve: 'P-256' }).privateKey;
  rsaKey ??= generateKeyPairSync('rsa', { modulusLength: 2048 }).privateKey;
  return rsaKey;
}

/** Makes a certificate with a new key. */
export function makeCertificate(options: CertificateOptions): Certificate {
  const { name, issuer, keyType = 'ec', ca = false, names = [], usage, fromDays = -1, toDays = 30 } = options;
  const key = makeKey(keyType);
  const signer = issuer?.key ?? key;
  const algorithm =
    signer.asymmetricKeyType === 'rsa'
      ? sequence(oid('1.2.840.113549.1.1.11'), tlv(0x05))
      : sequence(oid('1.2.840.10045.4.3.2'));
  const spki = createPublicKey(key).export({ type: 'spki', format: 'der' });
  const usages = { server: ['1.3.6.1.5.5.7.3.1'], client: ['1.3.6.1.5.5.7.3.2'] };
  const extensions = [extension('2.5.29.19', true, ca ? sequence(tlv(0x01, Buffer.of(255))) : sequence())];
  if (!ca) {
    const ids = usage === undefined ? [...usages.server, ...usages.client] : usages[usage];
    extensions.push(extension('2.5.29.37', false, sequence(...ids.map(oid))));
  }
  if (names.length > 0) extensions.push(extension('2.5.29.17', false, sequence(...names.map(generalName))));
  if (options.acmeDigest) extensions.push(extension('1.3.6.1.5.5.7.1.31', true, octets(options.acmeDigest)));
  const body = sequence(
    tlv(0xa0, tlv(0x02, Buffer.of(2))),
    tlv(0x02, Buffer.concat([Buffer.of(1), randomBytes(8)])),
    algorithm,
    distinguishedName(issuer?.name ?? name),
    sequence(time(Date.now() + fromDays * DAY_MS), time(Date.now() + toDays * DAY_MS)),
    distinguishedName(name),
    spki,
    tlv(0xa3, sequence(...extensions)),
  );
  const signature = sign('sha256', body, signer);
  if (options.badSignature) signature[signature.length - 1] ^= 1;
  const der = sequence(body, algorithm, bits(signature));
  const pem = `-----BEGIN CERTIFICATE-----\n${der.toString('base64').replace(/.{64}(?=.)/g, '$&\n')}\n-----END CERTIFICATE-----\n`;
  return { pem, keyPem: key.export({ type: 'pkcs8', format: 'pem' }) as string, key, name };
}
