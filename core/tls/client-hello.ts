// The first message of a TLS client, read before any TLS is spoken: which server it wants, with which
// protocols. Bytes are peeked at, never taken, and never changed: OpenSSL or the backend behind a
// passthrough route reads them again.
//
// Structure is checked as strictly as OpenSSL does, so that nothing is routed by a name that the
// TLS library would refuse or read differently. Meaning is not: unknown extensions, cipher suites,
// versions and GREASE values (RFC 8701) pass unread.
// Stateless. Hot module: no allocation.
// Spec: RFC 8446 §4.1.2, §5.1 (ClientHello, records), RFC 6066 §3 (server_name), RFC 7301 §3.1 (ALPN).

/**
 * Most bytes of the TCP stream that are looked at, record headers included. Browsers send up to 2 KiB
 * with post-quantum key shares.
 */
export const CLIENT_HELLO_BYTES_MAX = 16 * 1024;

/** Room that the parser may write to at its scratch offset. */
export const CLIENT_HELLO_SCRATCH_BYTES = CLIENT_HELLO_BYTES_MAX;

/** What can be wrong with a ClientHello. Appended to only: the numbers reach logs and counters. */
export const ClientHelloError = {
  NOT_TLS: 1,
  NOT_CLIENT_HELLO: 2,
  RECORD_INVALID: 3,
  TOO_LARGE: 4,
  MALFORMED: 5,
  EXTENSION_DUPLICATE: 6,
  SERVER_NAME_MALFORMED: 7,
  ALPN_MALFORMED: 8,
  VERSIONS_MALFORMED: 9,
} as const;

const { NOT_TLS, NOT_CLIENT_HELLO, RECORD_INVALID, TOO_LARGE, MALFORMED } = ClientHelloError;
const { EXTENSION_DUPLICATE, SERVER_NAME_MALFORMED, ALPN_MALFORMED, VERSIONS_MALFORMED } = ClientHelloError;

const sentences: Record<keyof typeof ClientHelloError, string> = {
  NOT_TLS: 'The client does not speak TLS.',
  NOT_CLIENT_HELLO: 'The first TLS message is not a ClientHello.',
  RECORD_INVALID: 'A TLS record of the ClientHello is empty, too long or of another type.',
  TOO_LARGE: 'The ClientHello is larger than the limit.',
  MALFORMED: 'The ClientHello is malformed: a length in it does not fit.',
  EXTENSION_DUPLICATE: 'The ClientHello holds an extension twice.',
  SERVER_NAME_MALFORMED: 'The server_name extension is malformed.',
  ALPN_MALFORMED: 'The ALPN extension is malformed.',
  VERSIONS_MALFORMED: 'The supported_versions extension is malformed.',
};

const byNumber: string[] = [];
for (const name of Object.keys(sentences) as (keyof typeof sentences)[]) {
  byNumber[ClientHelloError[name]] = sentences[name];
}

/** One plain sentence for logs. */
export function clientHelloErrorSentence(error: number): string {
  return byNumber[error] ?? 'Unknown ClientHello error.';
}

/** What a ClientHello says. Positions are in the parsed memory, and valid as long as input and scratch are. */
export class ClientHello {
  /**
   * After a return of 0: bytes from the stream's begin that are needed to get further, more than there
   * were. A lower bound: a hello in several records takes several rounds.
   */
  bytesNeeded = 0;
  /** The highest version the client offers, 0x0301 (TLS 1.0) to 0x0304 (TLS 1.3); 0: none that is known. */
  versionMax = 0;
  /** Server name in lower case without a dot at its end; always in the scratch room. Length 0: none. */
  serverNameOffset = 0;
  serverNameLength = 0;
  /** A name was sent, but is no hostname (an IP address, say) and counts as none. For logs. */
  serverNameInvalid = false;
  /** Offered application protocols: each a length byte (1 to 255) and a name. Length 0: no ALPN. */
  alpnOffset = 0;
  alpnLength = 0;
  /** Offered cipher suites, two bytes each in the client's order, GREASE values included. */
  cipherOffset = 0;
  cipherCount = 0;

  /** Back to "nothing known". */
  reset(): void {
    this.bytesNeeded = 0;
    this.versionMax = 0;
    this.serverNameOffset = 0;
    this.serverNameLength = 0;
    this.serverNameInvalid = false;
    this.alpnOffset = 0;
    this.alpnLength = 0;
    this.cipherOffset = 0;
    this.cipherCount = 0;
  }
}

const RECORD_HEADER_BYTES = 5;
const HANDSHAKE_HEADER_BYTES = 4;
/** RFC 8446 §5.1: longest fragment of a plaintext record. */
const FRAGMENT_BYTES_MAX = 1 << 14;
const CONTENT_HANDSHAKE = 22;
const HANDSHAKE_CLIENT_HELLO = 1;
const VERSION_MAJOR = 3;
const TLS10 = 0x0301;
const TLS12 = 0x0303;
const TLS13 = 0x0304;
const RANDOM_BYTES = 32;
const SESSION_ID_BYTES_MAX = 32;

const EXTENSION_SERVER_NAME = 0;
const EXTENSION_ALPN = 16;
const EXTENSION_SUPPORTED_VERSIONS = 43;
/** Bits of a set of the extensions that are read. */
const SEEN_SERVER_NAME = 1;
const SEEN_ALPN = 2;
const SEEN_VERSIONS = 4;

/** Longest server name: OpenSSL refuses more, DNS has less. */
const SERVER_NAME_BYTES_MAX = 255;
const HOSTNAME_BYTES_MAX = 253;
const LABEL_BYTES_MAX = 63;
const DOT = 0x2e;
const HYPHEN = 0x2d;
const UNDERSCORE = 0x5f;
const SP = 0x20;
const ASTERISK = 0x2a;
const SLASH = 0x2f;
const encoder = new TextEncoder();
const CONNECT = encoder.encode('connect');
const HTTP = encoder.encode('http');

/** Checks what of a record header at `at` has arrived: 0, or -(ClientHelloError). */
function checkRecordHeader(memory: Uint8Array, at: number, available: number, first: boolean): number {
  const wrong = first ? -NOT_TLS : -RECORD_INVALID;
  if (available > 0 && memory[at] !== CONTENT_HANDSHAKE) return wrong;
  // The minor version is anything in practice, and must be ignored (RFC 8446 §5.1).
  if (available > 1 && memory[at + 1] !== VERSION_MAJOR) return wrong;
  if (available < RECORD_HEADER_BYTES) return 0;
  const fragmentBytes = readUint16(memory, at + 3);
  // Handshake records are never empty (§5.1); a bound on their number follows from that.
  return fragmentBytes === 0 || fragmentBytes > FRAGMENT_BYTES_MAX ? -RECORD_INVALID : 0;
}

function readUint16(memory: Uint8Array, at: number): number {
  return (memory[at] << 8) | memory[at + 1];
}

/** Copies the `total` bytes of a message that starts in the record at `at` to `to`, record by record. */
function defragment(memory: Uint8Array, at: number, total: number, to: number): void {
  let left = total;
  while (left > 0) {
    const fragmentBytes = readUint16(memory, at + 3);
    const start = at + RECORD_HEADER_BYTES;
    const size = Math.min(fragmentBytes, left);
    memory.copyWithin(to, start, start + size);
    to += size;
    left -= size;
    at = start + fragmentBytes;
  }
}

/**
 * Parses the ClientHello in [offset, offset + length), which starts at the first byte of the TCP stream.
 *
 * Returns the bytes up to its end (record headers included), 0 if more are needed
 * (`result.bytesNeeded`), or -(ClientHelloError). More bytes never change an answer other than 0.
 * Reads nothing outside the range; writes only to [scratchOffset, scratchOffset +
 * CLIENT_HELLO_SCRATCH_BYTES), which must not overlap it: the server name in lower case, or a hello
 * that came in several records. `result` holds the findings after a positive return only.
 *
 * A server name that is no hostname, by the rule that the configuration has for hostnames, counts as
 * none, as in nginx: the listener's default then decides. One that OpenSSL would answer with an
 * alert is an error. One dot at its end is dropped, as from every hostname (RFC 6066 forbids it).
 */
export function parseClientHello(
  memory: Uint8Array,
  offset: number,
  length: number,
  scratchOffset: number,
  result: ClientHello,
): number {
  result.reset();
  const end = (offset + length) | 0;
  // Nothing from here on is looked at, whatever has arrived.
  const limit = (offset + CLIENT_HELLO_BYTES_MAX) | 0;
  let at = offset | 0;
  // Bytes of the handshake message before the record at `at`; of its header, read so far; of its body.
  let collected = 0;
  let headerBytes = 0;
  let bodyLength = 0;
  for (;;) {
    const fragment = (at + RECORD_HEADER_BYTES) | 0;
    const error = checkRecordHeader(memory, at, end - at, at === offset);
    if (error !== 0) return error;
    if (fragment > end) {
      result.bytesNeeded = fragment - offset;
      return 0;
    }
    const fragmentBytes = readUint16(memory, at + 3);
    const fragmentEnd = (fragment + fragmentBytes) | 0;

    // The header of the message may itself be spread over records, but over no more than four.
    for (let i = fragment; headerBytes < HANDSHAKE_HEADER_BYTES && i < fragmentEnd; i++) {
      if (i >= end) {
        result.bytesNeeded = Math.min(i + HANDSHAKE_HEADER_BYTES - headerBytes, fragmentEnd) - offset;
        return 0;
      }
      if (headerBytes !== 0) bodyLength = (bodyLength << 8) | memory[i];
      else if (memory[i] !== HANDSHAKE_CLIENT_HELLO) return -NOT_CLIENT_HELLO;
      headerBytes++;
    }
    if (headerBytes === HANDSHAKE_HEADER_BYTES) {
      const total = HANDSHAKE_HEADER_BYTES + bodyLength;
      const left = total - collected;
      const last = left <= fragmentBytes;
      // If this record does not hold all that is left, at least one more record header follows.
      if (fragment + left + (last ? 0 : RECORD_HEADER_BYTES) > limit) return -TOO_LARGE;
      const pieceEnd = last ? (fragment + left) | 0 : fragmentEnd;
      if (pieceEnd > end) {
        result.bytesNeeded = pieceEnd - offset;
        return 0;
      }
      if (last) {
        const wrong =
          collected === 0
            ? parseBody(memory, fragment + HANDSHAKE_HEADER_BYTES, pieceEnd, scratchOffset, result)
            : parseFragmented(memory, offset, total, scratchOffset, result);
        return wrong !== 0 ? wrong : pieceEnd - offset;
      }
    }
    at = fragmentEnd;
    collected = (collected + fragmentBytes) | 0;
  }
}

function parseFragmented(
  memory: Uint8Array,
  offset: number,
  total: number,
  scratchOffset: number,
  result: ClientHello,
): number {
  defragment(memory, offset, total, scratchOffset);
  return parseBody(memory, scratchOffset + HANDSHAKE_HEADER_BYTES, scratchOffset + total, -1, result);
}

/**
 * Parses the message body in [at, end), all of it there: 0, or -(ClientHelloError). The server name
 * goes to `nameTarget`; -1: it stays where it is, in bytes that may be changed.
 */
function parseBody(memory: Uint8Array, at: number, end: number, nameTarget: number, result: ClientHello): number {
  // Version and random, then the length of the session identifier.
  let i = (at + 2 + RANDOM_BYTES) | 0;
  if (i >= end) return -MALFORMED;
  const legacyVersion = readUint16(memory, at);
  const sessionIdBytes = memory[i];
  if (sessionIdBytes > SESSION_ID_BYTES_MAX) return -MALFORMED;
  i = (i + 1 + sessionIdBytes) | 0;

  if (i + 2 > end) return -MALFORMED;
  const cipherBytes = readUint16(memory, i);
  i = (i + 2) | 0;
  if (cipherBytes === 0 || (cipherBytes & 1) !== 0) return -MALFORMED;
  result.cipherOffset = i;
  result.cipherCount = cipherBytes >> 1;
  i = (i + cipherBytes) | 0;

  if (i >= end || memory[i] === 0) return -MALFORMED;
  i = (i + 1 + memory[i]) | 0;

  // Without supported_versions a client means at most TLS 1.2 (RFC 8446 §4.2.1).
  result.versionMax = legacyVersion > TLS12 ? TLS12 : legacyVersion < TLS10 ? 0 : legacyVersion;
  // Before TLS 1.3 a hello could do without extensions.
  if (i === end) return 0;
  if (i + 2 > end || i + 2 + readUint16(memory, i) !== end) return -MALFORMED;
  return parseExtensions(memory, i + 2, end, nameTarget, result);
}

function parseExtensions(memory: Uint8Array, at: number, end: number, nameTarget: number, result: ClientHello): number {
  let seen = 0;
  let i = at | 0;
  while (i < end) {
    if (i + 4 > end) return -MALFORMED;
    const type = readUint16(memory, i);
    const start = (i + 4) | 0;
    i = (start + readUint16(memory, i + 2)) | 0;
    if (i > end) return -MALFORMED;
    const bit =
      type === EXTENSION_SERVER_NAME
        ? SEEN_SERVER_NAME
        : type === EXTENSION_ALPN
          ? SEEN_ALPN
          : type === EXTENSION_SUPPORTED_VERSIONS
            ? SEEN_VERSIONS
            : 0;
    if (bit === 0) continue;
    if ((seen & bit) !== 0) return -EXTENSION_DUPLICATE;
    seen |= bit;
    const error =
      bit === SEEN_SERVER_NAME
        ? parseServerName(memory, start, i, nameTarget, result)
        : bit === SEEN_ALPN
          ? parseAlpn(memory, start, i, result)
          : parseVersions(memory, start, i, result);
    if (error !== 0) return error;
  }
  return 0;
}

/** RFC 6066 §3. Like OpenSSL and BoringSSL, takes exactly one name, of type host_name. */
function parseServerName(memory: Uint8Array, at: number, end: number, nameTarget: number, result: ClientHello): number {
  const start = (at + 5) | 0;
  if (start >= end) return -SERVER_NAME_MALFORMED;
  const nameBytes = end - start;
  if (readUint16(memory, at) !== nameBytes + 3) return -SERVER_NAME_MALFORMED;
  if (memory[at + 2] !== 0 || readUint16(memory, at + 3) !== nameBytes) return -SERVER_NAME_MALFORMED;
  if (nameBytes > SERVER_NAME_BYTES_MAX) return -SERVER_NAME_MALFORMED;
  for (let i = start; i < end; i++) {
    if (memory[i] === 0) return -SERVER_NAME_MALFORMED;
  }
  const target = nameTarget < 0 ? start : nameTarget;
  const hostnameBytes = copyHostname(memory, start, end, target);
  result.serverNameInvalid = hostnameBytes === 0;
  if (hostnameBytes !== 0) {
    result.serverNameOffset = target;
    result.serverNameLength = hostnameBytes;
  }
  return 0;
}

/**
 * Copies [at, end) to `target` in lower case and returns the length without a dot at the end, or 0 if
 * it is no hostname: labels of 1 to 63 letters, digits, `_`, and inside `-`; the last one not all digits.
 */
function copyHostname(memory: Uint8Array, at: number, end: number, target: number): number {
  if (memory[end - 1] === DOT) end = (end - 1) | 0;
  if (end <= at || end - at > HOSTNAME_BYTES_MAX) return 0;
  let labelStart = at;
  let digitsOnly = true;
  for (let i = at | 0; i < end; i++) {
    let byte = memory[i];
    if (byte === DOT) {
      if (!labelFits(memory, labelStart, i)) return 0;
      labelStart = i + 1;
      digitsOnly = true;
    } else if (byte < 0x30 || byte > 0x39) {
      digitsOnly = false;
      if (byte >= 0x41 && byte <= 0x5a) byte |= 0x20;
      else if ((byte < 0x61 || byte > 0x7a) && byte !== HYPHEN && byte !== UNDERSCORE) return 0;
    }
    memory[target + i - at] = byte;
  }
  return labelFits(memory, labelStart, end) && !digitsOnly ? end - at : 0;
}

function labelFits(memory: Uint8Array, start: number, end: number): boolean {
  const size = end - start;
  return size > 0 && size <= LABEL_BYTES_MAX && memory[start] !== HYPHEN && memory[end - 1] !== HYPHEN;
}

/** RFC 7301 §3.1: a list that fills the extension, of names that fill the list, none of them empty. */
function parseAlpn(memory: Uint8Array, at: number, end: number, result: ClientHello): number {
  const start = (at + 2) | 0;
  if (start >= end || readUint16(memory, at) !== end - start) return -ALPN_MALFORMED;
  let i = start;
  while (i < end) {
    if (memory[i] === 0) return -ALPN_MALFORMED;
    i = (i + 1 + memory[i]) | 0;
  }
  if (i !== end) return -ALPN_MALFORMED;
  result.alpnOffset = start;
  result.alpnLength = end - start;
  return 0;
}

/** RFC 8446 §4.2.1. Drafts and GREASE values are larger than any known version and mean nothing. */
function parseVersions(memory: Uint8Array, at: number, end: number, result: ClientHello): number {
  const start = (at + 1) | 0;
  const size = end - start;
  if (size < 2 || (size & 1) !== 0 || memory[at] !== size) return -VERSIONS_MALFORMED;
  let versionMax = 0;
  for (let i = start; i < end; i = (i + 2) | 0) {
    const version = readUint16(memory, i);
    if (version >= TLS10 && version <= TLS13 && version > versionMax) versionMax = version;
  }
  result.versionMax = versionMax;
  return 0;
}

/** Whether a parsed hello offers the application protocol with exactly the bytes of `protocol`. */
export function offersAlpn(memory: Uint8Array, hello: ClientHello, protocol: Uint8Array): boolean {
  const end = hello.alpnOffset + hello.alpnLength;
  const size = protocol.length;
  for (let i = hello.alpnOffset; i < end; i += 1 + memory[i]) {
    if (memory[i] !== size) continue;
    let matched = 0;
    while (matched < size && memory[i + 1 + matched] === protocol[matched]) matched++;
    if (matched === size) return true;
  }
  return false;
}

/** Methods of plain HTTP that are told from other protocols: 3 to 20 capitals and hyphens. */
const METHOD_BYTES_MIN = 3;
const METHOD_BYTES_MAX = 20;

/**
 * Whether the first bytes of a connection are plain HTTP: an HTTP/1 request line or the HTTP/2 preface.
 * 1: yes; 0: more bytes are needed to tell (25 at most); -1: no. Looks at a method, a space and the begin
 * of a target: `/`, `*`, `http` or, after CONNECT, anything. For the 400 that explains itself on a
 * TLS port, so it is no parser: the line may still be wrong.
 */
export function looksLikeHttp(memory: Uint8Array, offset: number, length: number): number {
  const end = (offset + length) | 0;
  let i = offset | 0;
  for (; i < end; i++) {
    const byte = memory[i];
    if (byte === SP) break;
    const capital = byte >= 0x41 && byte <= 0x5a;
    if (!capital && (byte !== HYPHEN || i === offset)) return -1;
    if (i - offset >= METHOD_BYTES_MAX) return -1;
  }
  if (i === end) return 0;
  if (i - offset < METHOD_BYTES_MIN) return -1;
  const target = i + 1;
  if (target === end) return 0;
  if (memory[target] === SLASH || memory[target] === ASTERISK) return 1;
  if (i - offset === CONNECT.length && startsWith(memory, offset, i, CONNECT) === 1)
    return memory[target] > SP ? 1 : -1;
  return startsWith(memory, target, end, HTTP);
}

/** Whether [at, end) starts with `text`, letters in lower case or both: 1, 0 as far as it goes, or -1. */
function startsWith(memory: Uint8Array, at: number, end: number, text: Uint8Array): number {
  for (let i = 0; i < text.length; i++) {
    if (at + i >= end) return 0;
    if ((memory[at + i] | 0x20) !== text[i]) return -1;
  }
  return 1;
}
