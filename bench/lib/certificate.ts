// The one certificate that all proxies of a run share, made with the openssl program at run time.
//
// ECDSA P-256, self-signed, for TLS_HOST. Clients of the benchmark do not verify it: what a client
// checks costs the client, and never the proxy.

import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { findExecutable, runCommand, temporaryDir } from './processes.ts';

/** Name in the certificate, in the URLs of load generators and so in SNI (which takes no address), and in TLS routes. */
export const TLS_HOST = 'localhost';
/** The one cipher suite of every proxy that can be told; the choice of those that cannot (Caddy, Envoy). */
export const TLS_SUITE = 'TLS_AES_128_GCM_SHA256';

/** PEM files. */
export interface CertificateFiles {
  certificate: string;
  key: string;
  /** Certificate and key in one file, as HAProxy wants them. */
  combined: string;
}

let made: Promise<CertificateFiles> | null = null;

/** The files, made at the first call. Rejects when openssl is missing or fails. */
export function certificateFiles(): Promise<CertificateFiles> {
  made ??= make();
  return made;
}

async function make(): Promise<CertificateFiles> {
  if (findExecutable('openssl') === null) throw new Error('openssl is not installed (apt-get install openssl)');
  const certificate = join(temporaryDir(), 'site.crt');
  const key = join(temporaryDir(), 'site.key');
  const combined = join(temporaryDir(), 'site.pem');
  const args = ['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes', '-days', '30'];
  args.push(
    '-subj',
    `/CN=${TLS_HOST}`,
    '-addext',
    `subjectAltName=DNS:${TLS_HOST}`,
    '-keyout',
    key,
    '-out',
    certificate,
  );
  const { code, stderr } = await runCommand('openssl', args);
  if (code !== 0) throw new Error(`openssl could not make a certificate: ${stderr.trim()}`);
  writeFileSync(combined, readFileSync(certificate, 'utf8') + readFileSync(key, 'utf8'), { mode: 0o600 });
  return { certificate, key, combined };
}
