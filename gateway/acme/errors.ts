// What can go wrong between here and a certificate, and what an operator can do about it.
//
// Every failure ends as an AcmeError: one clause of cause, one sentence of advice, and what the
// schedule needs to know (how long to wait, and whether the CA as a whole is out of reach).
// Control thread only.

/** Kinds of failures, by whose turn it is. */
export type AcmeErrorKind =
  /** The CA could not be reached, or is out of order: nothing that it counts has happened. */
  | 'unreachable'
  /** The CA asks for less. */
  | 'rateLimited'
  /** The CA refused: an account, an order, a challenge. */
  | 'refused'
  /** The configuration lacks something that the CA demands. */
  | 'configuration'
  /** The storage directory cannot be used. */
  | 'storage'
  /** The CA's answer makes no sense. */
  | 'protocol';

/** An error of the ACME code. */
export class AcmeError extends Error {
  override readonly name = 'AcmeError';
  /** Stable, for tests and metrics. */
  readonly kind: AcmeErrorKind;
  /** What to do about it: one sentence without a full stop. */
  readonly advice: string;
  /** ACME error type without its prefix, such as `rateLimited`; empty when the CA sent none. */
  readonly problem: string;
  /** How long the CA wants to be left alone, in milliseconds; 0: it did not say. */
  readonly retryAfterMs: number;

  /** `cause` is one clause without a full stop. */
  constructor(kind: AcmeErrorKind, cause: string, advice: string, problem = '', retryAfterMs = 0) {
    super(cause);
    this.kind = kind;
    this.advice = advice;
    this.problem = problem;
    this.retryAfterMs = retryAfterMs;
  }
}

/** An error document (RFC 7807), as far as it is used. */
export interface Problem {
  type?: unknown;
  detail?: unknown;
  subproblems?: unknown;
}

const PROBLEM_PREFIX = 'urn:ietf:params:acme:error:';

const HOUR_MS = 3_600_000;

/** Wait after a rate limit that came without Retry-After. */
const RATE_LIMIT_WAIT_MS = HOUR_MS;

/** Longest text of a CA that is passed on to the log. */
const DETAIL_CHARS_MAX = 500;

/** What to do about each error type of RFC 8555 §6.7 that a gateway can meet. */
const advices: Record<string, string> = {
  accountDoesNotExist: 'nothing: a new account is registered at the next attempt',
  badCSR: 'look at whether the CA issues for all these hostnames together and accepts ECDSA P-256 keys',
  badPublicKey: 'the CA does not accept ECDSA P-256 keys; choose another CA',
  badSignatureAlgorithm: 'the CA does not accept ES256 signatures; choose another CA',
  caa: "allow this CA in the CAA records of the hostname's domain, or remove them",
  connection:
    'make the hostname reach this gateway from the internet: its A and AAAA records, firewalls, and port 80 for http-01 or port 443 for tls-alpn-01',
  dns: 'look at the A and AAAA records of the hostname and at DNSSEC: the CA could not look it up',
  externalAccountRequired: 'get a key id and an HMAC key from the CA and configure the external account binding',
  incorrectResponse:
    'something else answered for the hostname: see that its A and AAAA records lead to this gateway only, without another server or CDN in front that answers the challenge',
  invalidContact: 'correct the email address of the account',
  rateLimited: 'wait: the CA limits how many certificates or failures it allows; do not delete the storage directory',
  rejectedIdentifier: 'the CA does not issue for this hostname; remove it or choose another CA',
  serverInternal: "wait: it is the CA's fault; look at its status page",
  tls: 'the TLS handshake of the challenge failed: see that port 443 of the hostname reaches this gateway as it is, without a TLS-terminating load balancer in front, or use http-01',
  unauthorized:
    'something else than this gateway answered for the hostname, or nothing: see that its A and AAAA records lead to this gateway only, and that no other server or CDN in front answers the challenge',
  unsupportedContact: 'correct the email address of the account',
  unsupportedIdentifier: 'the CA does not issue for names of this kind; remove it or choose another CA',
  userActionRequired: 'read what the CA asks for at the address it names, usually new terms of service, and agree',
};

/** What to do where the account, and not a challenge, is `unauthorized`. */
const ACCOUNT_ADVICE =
  'the CA does not let this account do that; if it was deactivated, move account.json out of the storage directory to register a new one';

/**
 * The error that an error document of the CA stands for; `what` begins its cause. `retryAfterMs` is 0
 * without such a header. `challenge`: the document is about a challenge and not about a request.
 */
export function problemError(
  problem: Problem,
  status: number,
  what: string,
  retryAfterMs: number,
  challenge = false,
): AcmeError {
  const type = typeof problem.type === 'string' ? problem.type : '';
  const short = type.startsWith(PROBLEM_PREFIX) ? type.slice(PROBLEM_PREFIX.length) : '';
  const code = short === '' ? `status ${status}` : short;
  const cause = `${what}: ${[`the CA says ${code}`, ...details(problem)].join(': ')}`;
  if (short === 'rateLimited' || status === 429) {
    return new AcmeError('rateLimited', cause, advices.rateLimited!, short, retryAfterMs || RATE_LIMIT_WAIT_MS);
  }
  if (status >= 500) {
    return new AcmeError('unreachable', cause, advices.serverInternal!, short, retryAfterMs);
  }
  const known = short === 'unauthorized' && !challenge ? ACCOUNT_ADVICE : advices[short];
  const advice = known ?? "look the CA's message up in its documentation";
  const kind = short === 'externalAccountRequired' ? 'configuration' : 'refused';
  return new AcmeError(kind, cause, advice, short, retryAfterMs);
}

/** The error for a request that got no answer. `host` is the CA's. */
export function transportError(error: NodeJS.ErrnoException, host: string): AcmeError {
  const { code = '' } = error;
  const [cause, advice] = transportCause(code, host);
  return new AcmeError('unreachable', `${cause ?? `no answer from ${host}: ${error.message}`}`, advice);
}

function transportCause(code: string, host: string): [string | undefined, string] {
  switch (code) {
    case 'ENOTFOUND':
    case 'EAI_AGAIN':
      return [`the CA's name ${host} does not resolve`, 'look at the DNS resolver of this machine (/etc/resolv.conf)'];
    case 'ECONNREFUSED':
    case 'ECONNRESET':
    case 'EHOSTUNREACH':
    case 'ENETUNREACH':
    case 'ETIMEDOUT':
      return [
        `the CA ${host} cannot be reached (${code})`,
        'let this machine open connections to the CA (port 443), or wait until the CA is back',
      ];
    case 'SELF_SIGNED_CERT_IN_CHAIN':
    case 'DEPTH_ZERO_SELF_SIGNED_CERT':
    case 'UNABLE_TO_GET_ISSUER_CERT_LOCALLY':
    case 'UNABLE_TO_VERIFY_LEAF_SIGNATURE':
      return [
        `the certificate of the CA's own server ${host} is not trusted (${code})`,
        "for a private CA, give its root certificate; otherwise somebody intercepts this machine's TLS",
      ];
    case 'CERT_HAS_EXPIRED':
    case 'CERT_NOT_YET_VALID':
      return [
        `the certificate of the CA's own server ${host} is not valid now (${code})`,
        "look at this machine's clock",
      ];
    default:
      return [undefined, 'look at the network between this machine and the CA'];
  }
}

/** The error for a storage directory that refuses: what was tried, and the system's error. */
export function storageError(what: string, path: string, error: NodeJS.ErrnoException): AcmeError {
  const [cause, advice] = storageCause(error, path);
  return new AcmeError('storage', `${what}: ${cause}`, advice);
}

function storageCause(error: NodeJS.ErrnoException, path: string): [string, string] {
  switch (error.code) {
    case 'ENOSPC':
      return ['the disk is full', `free space on the file system of ${path}`];
    case 'EDQUOT':
      return ["this user's disk quota is used up", `free space, or raise the quota on the file system of ${path}`];
    case 'EROFS':
      return [`the file system of ${path} is read-only`, 'mount it writable, or choose another storage directory'];
    case 'EACCES':
    case 'EPERM':
      return [`this user may not use ${path}`, 'give the directory to the user that runs the gateway, with mode 700'];
    case 'ENOTDIR':
    case 'EEXIST':
      return [`a file is in the way at ${path}`, 'remove the file, or choose another storage directory'];
    case 'ENOENT':
      return [`${path} does not exist`, 'create its parent directory'];
    default:
      return [`${path}: ${error.message}`, 'look at the file system of the storage directory'];
  }
}

/** Any error as an AcmeError; others than ours are mistakes in the program, and keep their stack. */
export function asAcmeError(error: unknown): AcmeError {
  if (error instanceof AcmeError) return error;
  const text = error instanceof Error ? (error.stack ?? error.message) : String(error);
  return new AcmeError('protocol', `internal error: ${text}`, 'report this as a bug, with the line');
}

/** Longest wait that is taken from a Retry-After, so that a mistake of the CA cannot outlast a certificate. */
const RETRY_AFTER_MAX_MS = 7 * 24 * HOUR_MS;

/** A Retry-After header (RFC 9110 §10.2.3), seconds or a date, in milliseconds from now; 0 for none or nonsense. */
export function retryAfterMs(header: string | undefined, nowMs: number): number {
  if (header === undefined) return 0;
  const text = header.trim();
  const delayMs = /^\d{1,10}$/.test(text) ? Number(text) * 1000 : Date.parse(text) - nowMs;
  return delayMs > 0 ? Math.min(delayMs, RETRY_AFTER_MAX_MS) : 0;
}

/** The CA's own words, with those about single hostnames. */
function details(problem: Problem): string[] {
  const texts = [problem.detail];
  if (Array.isArray(problem.subproblems)) {
    for (const sub of problem.subproblems as { detail?: unknown; identifier?: { value?: unknown } }[]) {
      if (typeof sub?.detail === 'string') texts.push(`${sub.identifier?.value ?? 'one name'}: ${sub.detail}`);
    }
  }
  const text = texts.filter((part) => typeof part === 'string' && part !== '').join('; ');
  return text === '' ? [] : [text.replace(/\s+/g, ' ').slice(0, DETAIL_CHARS_MAX)];
}
