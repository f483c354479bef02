// Checks the certificates, keys and authorities that a configuration names, each problem with its place.
//
// Control thread. Used by `check`, at the start and at reloads. Like the checks of config/ it takes
// nothing for granted about shapes and skips what is wrong already.

import { dirname, resolve } from 'node:path';
import { type Candidate, certificatesByName } from '../../config/compile-tls.ts';
import { canonicalHostname } from '../../config/names.ts';
import { isMapping, items, type Mapping, mappings, refuse } from '../../config/semantics-walk.ts';
import { pathText, type Violation } from '../../config/validate.ts';
import type { Path } from '../../config/yaml.ts';
import type { Purpose } from './pem.ts';
import type { CertificateStore, SourceProblem } from './store.ts';

/** Violations of a configuration that was read from `configFile`. */
export function checkCertificateFiles(root: unknown, configFile: string, store: CertificateStore): Violation[] {
  const check = new FileCheck(configFile, store);
  if (isMapping(root)) check.root(root);
  return check.violations;
}

class FileCheck {
  readonly violations: Violation[] = [];
  private readonly directory: string;
  private readonly store: CertificateStore;

  constructor(configFile: string, store: CertificateStore) {
    this.directory = dirname(resolve(configFile));
    this.store = store;
  }

  root(root: Mapping): void {
    for (const [{ tls }, path] of mappings(root.listeners, ['listeners'])) {
      if (isMapping(tls) && tls.mode !== 'Passthrough') this.listener(tls, [...path, 'tls']);
    }
    for (const [{ tls }, path] of mappings(root.backends, ['backends'])) {
      if (!isMapping(tls)) continue;
      this.pair(tls, [...path, 'tls'], 'client');
      this.authorities(tls, [...path, 'tls']);
    }
    if (isMapping(root.acme)) this.authorities(root.acme, ['acme']);
    if (isMapping(root.redis) && isMapping(root.redis.tls)) this.authorities(root.redis.tls, ['redis', 'tls']);
  }

  private listener(tls: Mapping, path: Path): void {
    const candidates: { candidate: Candidate; path: Path }[] = [];
    for (const [entry, at] of mappings(tls.certificates, [...path, 'certificates'])) {
      this.pair(entry, at, 'server');
      if (!isText(entry.certificate) || !isText(entry.key)) continue;
      const certificate = this.store.pair(this.filesOf(entry.certificate, entry.key));
      if (certificate === undefined) continue;
      const hostnames = [...items(entry.hostnames, [])].map(([name]) => name).filter(isText);
      const names = entry.hostnames === undefined ? certificate.names : hostnames.map(canonicalHostname);
      candidates.push({ candidate: { certificate, names }, path: at });
    }
    this.unused(candidates);
    if (isMapping(tls.clientValidation)) this.authorities(tls.clientValidation, [...path, 'clientValidation']);
  }

  /** A certificate that no client would ever be shown is a mistake. */
  private unused(candidates: readonly { candidate: Candidate; path: Path }[]): void {
    const byName = certificatesByName(candidates.map(({ candidate }) => candidate));
    candidates.forEach(({ candidate, path }, index) => {
      const { certificate } = candidate;
      const names = candidate.names.length === 0 ? [''] : candidate.names;
      if (names.some((name) => byName.get(name)!.includes(certificate))) {
        const reachable = candidate.names.length > 0 || candidates[0]!.candidate.names.length === 0;
        if (reachable) return;
        const problem = 'has no DNS names, so that no client would get it';
        this.add([...path, 'certificate'], problem, 'a certificate with DNS names, or hostnames beside it');
        return;
      }
      const first = candidates.findIndex(({ candidate: { certificate: other, names: otherNames } }) => {
        const taken = otherNames.length === 0 ? [''] : otherNames;
        return other.keyType === certificate.keyType && names.some((name) => taken.includes(name));
      });
      if (first < 0 || first >= index) return;
      const { keyType } = certificate;
      const problem = `is never used: ${pathText(candidates[first]!.path)} is for the same names, with a key of the same type (${keyType})`;
      this.add([...path, 'certificate'], problem, 'one certificate for each name and type of key');
    });
  }

  private pair(holder: Mapping, path: Path, purpose: Purpose): void {
    const { certificate, key } = holder;
    if (!isText(certificate) || !isText(key)) return;
    const problem = this.store.testPair(this.filesOf(certificate, key), purpose);
    if (problem !== undefined) this.addProblem([...path, problem.part], problem);
  }

  private authorities(holder: Mapping, path: Path): void {
    const { caCertificates } = holder;
    if (!isText(caCertificates)) return;
    const problem = this.store.testAuthorities(resolve(this.directory, caCertificates));
    if (problem !== undefined) this.addProblem([...path, 'caCertificates'], problem);
  }

  private filesOf(certificate: string, key: string): { certificateFile: string; keyFile: string } {
    return { certificateFile: resolve(this.directory, certificate), keyFile: resolve(this.directory, key) };
  }

  private addProblem(path: Path, { file, problem, expected }: SourceProblem): void {
    this.add(path, `${file} ${problem}`, expected);
  }

  private add(path: Path, problem: string, expected?: string): void {
    refuse((violation) => this.violations.push(violation), path, problem, expected);
  }
}

function isText(value: unknown): value is string {
  return typeof value === 'string' && value !== '';
}
