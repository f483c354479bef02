// ClientHellos made by hand, right and wrong in chosen places.

/** Parts of a hello; each may be replaced to make it wrong. */
export interface HelloParts {
  version?: number;
  sessionId?: Uint8Array;
  ciphers?: Uint8Array;
  compression?: Uint8Array;
  /** Shorthand for a server_name extension with this name. */
  serverName?: string | Uint8Array;
  /** Shorthand for an ALPN extension. */
  alpn?: string[];
  /** Shorthand for supported_versions. */
  versions?: number[];
  /** More extensions: type and content. Behind the shorthands. */
  extensions?: [number, Uint8Array][];
  /** All of the bytes behind the compression methods. */
  tail?: Uint8Array;
}

/** A length in `bytes` bytes, then the content. */
export function prefixed(bytes: number, content: Uint8Array): Buffer {
  const length = Buffer.alloc(bytes);
  length.writeUIntBE(content.length, 0, bytes);
  return Buffer.concat([length, content]);
}

/** Content of a server_name extension. */
export function serverNameContent(name: string | Uint8Array): Buffer {
  return prefixed(2, Buffer.concat([Buffer.of(0), prefixed(2, Buffer.from(name as string))]));
}

/** Content of an ALPN extension. */
export function alpnContent(protocols: string[]): Buffer {
  return prefixed(2, Buffer.concat(protocols.map((protocol) => prefixed(1, Buffer.from(protocol)))));
}

/** Content of a supported_versions extension. */
export function versionsContent(versions: number[]): Buffer {
  return prefixed(1, Buffer.from(versions.flatMap((version) => [version >> 8, version & 255])));
}

/** One TLS record of type handshake. */
export function record(content: Uint8Array): Buffer {
  return Buffer.concat([Buffer.of(22, 3, 1), prefixed(2, content)]);
}

/** A handshake message in records of the given sizes, the last of which is repeated. */
export function records(message: Uint8Array, sizes: number[]): Buffer {
  const out: Buffer[] = [];
  for (let at = 0, index = 0; at < message.length; index++) {
    const size = sizes[Math.min(index, sizes.length - 1)]!;
    out.push(record(message.subarray(at, at + size)));
    at += size;
  }
  return Buffer.concat(out);
}

/** The handshake message of a ClientHello. */
export function helloMessage(parts: HelloParts): Buffer {
  const extensions = [...(parts.extensions ?? [])];
  if (parts.versions !== undefined) extensions.unshift([43, versionsContent(parts.versions)]);
  if (parts.alpn !== undefined) extensions.unshift([16, alpnContent(parts.alpn)]);
  if (parts.serverName !== undefined) extensions.unshift([0, serverNameContent(parts.serverName)]);
  const version = parts.version ?? 0x0303;
  const tail =
    parts.tail ??
    prefixed(
      2,
      Buffer.concat(
        extensions.map(([type, content]) => Buffer.concat([Buffer.of(type >> 8, type & 255), prefixed(2, content)])),
      ),
    );
  const body = Buffer.concat([
    Buffer.of(version >> 8, version & 255),
    Buffer.alloc(32, 7),
    prefixed(1, parts.sessionId ?? Buffer.alloc(32)),
    prefixed(2, parts.ciphers ?? Buffer.of(0x13, 0x01, 0x0a, 0x0a)),
    prefixed(1, parts.compression ?? Buffer.of(0)),
    tail,
  ]);
  return Buffer.concat([Buffer.of(1), prefixed(3, body)]);
}

/** A ClientHello in one record. */
export function hello(parts: HelloParts): Buffer {
  return record(helloMessage(parts));
}
