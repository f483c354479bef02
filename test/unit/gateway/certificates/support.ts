// What the tests of certificates share: a directory with files, certificates, and a log that is kept.

import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { TestContext } from 'node:test';
import type { Log } from '../../../../core/workers/log.ts';
import { type Certificate, makeCertificate } from '../../core/tls/certificates.ts';

/** An empty directory that is removed after the test. */
export function temporaryDirectory(t: TestContext): string {
  const directory = mkdtempSync(join(tmpdir(), 'portcullis-certificates-'));
  t.after(() => rmSync(directory, { recursive: true }));
  return directory;
}

/** Writes a certificate and its key as NAME.crt and NAME.key. */
export function writePair(directory: string, name: string, { pem, keyPem }: Pick<Certificate, 'pem' | 'keyPem'>): void {
  writeFileSync(join(directory, `${name}.crt`), pem);
  writeFileSync(join(directory, `${name}.key`), keyPem);
}

/** A self-signed certificate for names such as `a.test`. */
export function certificateFor(names: string[], toDays = 30): Certificate {
  return makeCertificate({ name: names[0] ?? 'none', names: names.map((name) => `dns:${name}`), toDays });
}

/** A log whose lines can be looked at: level, message and fields as one text. */
export function keptLog(): { log: Log; lines: string[]; matching: (pattern: RegExp) => string[] } {
  const lines: string[] = [];
  return {
    log: (level, message, fields = {}) => {
      const pairs = Object.entries(fields).filter(([, value]) => value !== undefined);
      lines.push([level, message, ...pairs.map(([key, value]) => `${key}=${value}`)].join(' '));
    },
    lines,
    matching: (pattern) => lines.filter((line) => pattern.test(line)),
  };
}
