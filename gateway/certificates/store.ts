// The certificates, keys and authorities in use: read from files, given by an authority through ACME.
//
// Whatever has been good stays in use until something better comes: a file that turns bad is said once,
// with the reason, and changes nothing. Workers get texts, never names of files.
// Owned by the control thread. Invariant: `current` of a source has passed all checks.

import type { TlsMaterial } from '../../config/compile-tls.ts';
import type { CertificateFiles, Config } from '../../config/config.ts';
import { canonicalHostname } from '../../config/names.ts';
import { ExitCode, ExitError } from '../../core/process/exit-codes.ts';
import type { Log } from '../../core/workers/log.ts';
import type { CertificateState } from '../admin/state.ts';
import { type FileText, hashOf, readText } from './files.ts';
import { authoritiesProblem, type ParsedCertificate, type PemProblem, type Purpose, parsePair } from './pem.ts';

const DAY_MS = 86_400_000;

/** Days before expiry at which the log warns, largest first; 0: it has expired. */
const WARN_DAYS = [14, 3, 0];

/** What a source holds. */
type Content = { certificate: ParsedCertificate } | { authorities: string };

/** Why a source cannot be used. */
export interface SourceProblem extends PemProblem {
  /** Absolute path of the file that the problem is about. */
  file: string;
}

/** One or two files that belong together. */
interface Source {
  /** A pair of certificate and key, or one file with authorities. */
  files: string[];
  /** Absent: authorities. */
  purpose?: Purpose;
}

/** A source in use. */
interface Known {
  source: Source;
  current: Content;
  /** State of the files that `current` was made of. */
  hash: string;
  /** State of the files that was refused last, so that it is said once. */
  refused: string;
}

/** A certificate that came from elsewhere than files, such as an ACME order. */
export interface SuppliedCertificate {
  /** Names that it was ordered for: those of a `listeners[].tls.acme.hostnames`, in any order. */
  hostnames: readonly string[];
  chainPem: string;
  keyPem: string;
  /** Stands in until there is a real one: it is neither logged nor counted. Default: false. */
  placeholder?: boolean;
}

/** All certificates and authorities of the running configuration. */
export class CertificateStore {
  private readonly log: Log;
  private readonly now: () => number;
  private readonly known = new Map<string, Known>();
  /** By `keyOfNames`. */
  private readonly supplied = new Map<string, { certificate: ParsedCertificate; placeholder: boolean }>();
  /** Sources that have passed `test` and are not in use yet: `prepare` follows at once. */
  private readonly tested = new Map<string, { hash: string; content: Content }>();
  /** Keys of the sources that the running configuration names. */
  private inUse = new Set<string>();
  /** Fewest days that have been warned of, by fingerprint. */
  private readonly warned = new Map<string, number>();

  /** `now` gives milliseconds since 1970. */
  constructor(log: Log, now: () => number = Date.now) {
    this.log = log;
    this.now = now;
  }

  /**
   * What is wrong with a pair of files, or undefined. A pair that is in use and has turned bad is not
   * a problem: it stays in use as it was.
   */
  testPair(files: CertificateFiles, purpose: Purpose): SourceProblem | undefined {
    return this.test(pairSource(files, purpose));
  }

  /** What is wrong with a file of authorities, or undefined; the same holds as for `testPair`. */
  testAuthorities(file: string): SourceProblem | undefined {
    return this.test({ files: [file] });
  }

  /** A pair that passed `testPair`. */
  pair(files: CertificateFiles): ParsedCertificate | undefined {
    const key = keyOf(pairSource(files, 'server'));
    const content = this.tested.get(key)?.content ?? this.known.get(key)?.current;
    return content !== undefined && 'certificate' in content ? content.certificate : undefined;
  }

  /**
   * Reads everything that a configuration names. Throws an ExitError with one sentence when something
   * cannot be used and there is nothing from before. Follow up with `adopt` once the configuration runs.
   */
  prepare(config: Config, ticketKeys: readonly Uint8Array[]): TlsMaterial {
    for (const source of sourcesOf(config)) {
      const problem = this.refresh(source);
      if (problem !== undefined) {
        throw new ExitError(
          ExitCode.CONFIG_INVALID,
          `${problem.file} ${problem.problem}; expected ${problem.expected}.`,
        );
      }
    }
    this.tested.clear();
    return this.material(ticketKeys);
  }

  /** What the files of a prepared configuration hold, without reading them again. */
  material(ticketKeys: readonly Uint8Array[]): TlsMaterial {
    return {
      certificate: (files) => {
        const content = this.contentOf(pairSource(files, 'server'));
        if (!('certificate' in content))
          throw new Error(`${files.certificateFile} has not been loaded as a certificate`);
        return content.certificate;
      },
      authorities: (file) => {
        const content = this.contentOf({ files: [file] });
        if (!('authorities' in content)) throw new Error(`${file} has not been loaded as a list of authorities`);
        return content.authorities;
      },
      automatic: (hostnames) => {
        const supplied = this.supplied.get(keyOfNames(hostnames));
        return supplied === undefined ? [] : [supplied.certificate];
      },
      ticketKeys,
    };
  }

  /** The configuration runs: what it does not name is forgotten. Returns the files to watch. */
  adopt(config: Config): string[] {
    const sources = sourcesOf(config);
    this.inUse = new Set(sources.map(keyOf));
    for (const key of this.known.keys()) if (!this.inUse.has(key)) this.known.delete(key);
    const automatic = config.listeners.map(({ tls }) => keyOfNames(tls?.acme?.hostnames ?? []));
    for (const key of this.supplied.keys()) if (!automatic.includes(key)) this.supplied.delete(key);
    this.warnOfExpiry();
    return [...new Set(sources.flatMap(({ files }) => files))];
  }

  /** Reads the files in use again; whether anything good is new. Says what changed, and what was refused. */
  reread(): boolean {
    let changed = false;
    for (const key of this.inUse) {
      const known = this.known.get(key);
      if (known === undefined) continue;
      const { current } = known;
      this.refresh(known.source);
      changed ||= known.current !== current;
    }
    return changed;
  }

  /**
   * Takes a certificate from elsewhere, in place of an earlier one for the same names; one that has
   * expired too, as there may be no other. Throws an Error that says what is wrong with it; then nothing
   * changes. Returns whether it is another one than before.
   */
  supply({ hostnames, chainPem, keyPem, placeholder = false }: SuppliedCertificate): boolean {
    const parsed = parsePair(chainPem, keyPem, 'server', null);
    const names = hostnames.join(', ');
    if ('problem' in parsed) throw new Error(`the ${parsed.part} for ${names} ${parsed.problem}`);
    const missing = hostnames.map(canonicalHostname).filter((name) => !parsed.names.includes(name));
    if (missing.length > 0) throw new Error(`the certificate for ${names} lacks ${missing.join(', ')}`);
    const key = keyOfNames(hostnames);
    const before = this.supplied.get(key);
    this.supplied.set(key, { certificate: parsed, placeholder });
    if (before?.certificate.fingerprint === parsed.fingerprint) return false;
    if (placeholder) return true;
    const replaced = before === undefined || before.placeholder ? undefined : before.certificate;
    this.logCertificate('automatic certificate in use', parsed, replaced);
    this.warnOfExpiry();
    return true;
  }

  /** Warns of certificates that expire soon, once for each number of days of `WARN_DAYS`. */
  warnOfExpiry(): void {
    const live = new Set<string>();
    for (const { certificate, file } of this.certificates()) {
      const { fingerprint, label, notAfterMs } = certificate;
      live.add(fingerprint);
      const leftDays = (notAfterMs - this.now()) / DAY_MS;
      const reached = WARN_DAYS.filter((days) => leftDays <= days).at(-1);
      if (reached === undefined || (this.warned.get(fingerprint) ?? Infinity) <= reached) continue;
      this.warned.set(fingerprint, reached);
      const fields = { certificate: label, file, expires: new Date(notAfterMs).toISOString() };
      if (reached === 0) this.log('error', 'certificate has expired: clients refuse it', fields);
      else this.log('warn', 'certificate expires soon', { ...fields, days: Math.floor(leftDays) });
    }
    for (const fingerprint of this.warned.keys()) if (!live.has(fingerprint)) this.warned.delete(fingerprint);
  }

  /** Certificates in use, for the admin port. */
  states(): CertificateState[] {
    return this.certificates().map(({ certificate, file }) => ({
      name: certificate.label,
      file: file ?? 'acme',
      fingerprint: certificate.fingerprint,
      notAfterMs: certificate.notAfterMs,
    }));
  }

  // -- sources ---------------------------------------------------------------------

  private certificates(): { certificate: ParsedCertificate; file: string | undefined }[] {
    const all: { certificate: ParsedCertificate; file: string | undefined }[] = [];
    for (const key of this.inUse) {
      const known = this.known.get(key);
      if (known !== undefined && 'certificate' in known.current) {
        all.push({ certificate: known.current.certificate, file: known.source.files[0] });
      }
    }
    for (const { certificate, placeholder } of this.supplied.values()) {
      if (!placeholder) all.push({ certificate, file: undefined });
    }
    return all;
  }

  private contentOf(source: Source): Content {
    const known = this.known.get(keyOf(source));
    if (known === undefined) throw new Error(`${source.files.join(' and ')} have not been loaded`);
    return known.current;
  }

  private test(source: Source): SourceProblem | undefined {
    const key = keyOf(source);
    if (this.inUse.has(key)) return undefined;
    const texts = source.files.map(readText);
    const content = contentOf(source, texts, this.now());
    if ('problem' in content) return content;
    this.tested.set(key, { hash: hashOf(texts), content });
    return undefined;
  }

  /** Brings a source up to its files. Returns a problem only if there is nothing to go on with. */
  private refresh(source: Source): SourceProblem | undefined {
    const key = keyOf(source);
    const texts = source.files.map(readText);
    const hash = hashOf(texts);
    const known = this.known.get(key);
    if (known?.hash === hash) {
      if (known.refused !== '') this.log('info', 'file is as before again', { file: source.files[0]! });
      known.refused = '';
      return undefined;
    }
    const tested = this.tested.get(key);
    const content = tested?.hash === hash ? tested.content : contentOf(source, texts, this.now());
    if ('problem' in content) {
      if (known === undefined) return content;
      if (known.refused !== hash) this.logRefused(content, known.current);
      known.refused = hash;
      return undefined;
    }
    if (known === undefined) {
      this.known.set(key, { source, current: content, hash, refused: '' });
      if ('certificate' in content) this.logCertificate('certificate loaded', content.certificate, undefined, source);
    } else {
      this.logReplaced(source, known.current, content);
      Object.assign(known, { current: content, hash, refused: '' });
    }
    return undefined;
  }

  // -- log -------------------------------------------------------------------------

  private logReplaced(source: Source, before: Content, now: Content): void {
    if ('certificate' in now && 'certificate' in before) {
      this.logCertificate('certificate replaced', now.certificate, before.certificate, source);
    } else {
      this.log('info', 'list of authorities replaced', { file: source.files[0]! });
    }
  }

  private logCertificate(
    message: string,
    certificate: ParsedCertificate,
    before?: ParsedCertificate,
    source?: Source,
  ): void {
    this.log('info', message, {
      file: source?.files[0],
      names: certificate.names.join(',') || certificate.label,
      expires: new Date(certificate.notAfterMs).toISOString(),
      fingerprint: certificate.fingerprint,
      fingerprintBefore: before?.fingerprint,
    });
    if (certificate.strangers > 0) {
      this.log('warn', 'certificates in the file are no part of the chain and are not sent', {
        file: source?.files[0],
        certificates: certificate.strangers,
      });
    }
  }

  private logRefused({ file, problem, expected }: SourceProblem, current: Content): void {
    this.log('error', `${file} ${problem}, expected ${expected}: the one of before stays in use`, {
      fingerprint: 'certificate' in current ? current.certificate.fingerprint : undefined,
      expires: 'certificate' in current ? new Date(current.certificate.notAfterMs).toISOString() : undefined,
    });
  }
}

function pairSource({ certificateFile, keyFile }: CertificateFiles, purpose: Purpose): Source {
  return { files: [certificateFile, keyFile], purpose };
}

function keyOf({ files }: Source): string {
  return files.join('\n');
}

/** Equal for the same names in any order and spelling. */
function keyOfNames(hostnames: readonly string[]): string {
  return hostnames.map(canonicalHostname).sort().join();
}

/** All that a configuration names, each once. A pair that serves and is shown to backends is for servers. */
function sourcesOf({ listeners, backends }: Config): Source[] {
  const sources = new Map<string, Source>();
  const add = (source: Source): void => {
    if (!sources.has(keyOf(source))) sources.set(keyOf(source), source);
  };
  for (const { tls } of listeners) {
    for (const files of tls?.certificates ?? []) add(pairSource(files, 'server'));
    if (tls?.clientValidation) add({ files: [tls.clientValidation.caFile] });
  }
  for (const { tls } of backends) {
    if (tls?.certificate) add(pairSource(tls.certificate, 'client'));
    if (tls?.caFile) add({ files: [tls.caFile] });
  }
  return [...sources.values()];
}

/** What the texts of a source hold, or why they cannot be used. */
function contentOf(source: Source, texts: readonly FileText[], nowMs: number): Content | SourceProblem {
  const { files, purpose } = source;
  const good: string[] = [];
  for (const [index, text] of texts.entries()) {
    if ('text' in text) {
      good.push(text.text);
      continue;
    }
    const part = index === 0 ? 'certificate' : 'key';
    return { file: files[index]!, part, problem: text.problem, expected: 'a readable PEM file' };
  }
  if (purpose === undefined) {
    const problem = authoritiesProblem(good[0]!);
    return problem === undefined ? { authorities: good[0]! } : { file: files[0]!, ...problem };
  }
  const parsed = parsePair(good[0]!, good[1]!, purpose, nowMs);
  if ('problem' in parsed) return { file: files[parsed.part === 'certificate' ? 0 : 1]!, ...parsed };
  return { certificate: parsed };
}
