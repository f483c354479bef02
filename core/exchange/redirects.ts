// Redirects of a rule: the Location from the parts that the filter gives, and those of the request.
// Made once per snapshot and policy, immutable afterwards. Hot module: no allocation.
// Spec: Gateway API HTTPRequestRedirectFilter; RFC 9110 §10.2.2 (Location), §15.4.

import { statusLine } from '../http2/status-lines.ts';
import { putBytes, putDecimal, putLineEnd, putRange, putText, Text } from '../io/bytes.ts';
import type { Reactor } from '../io/reactor.ts';
import type { RedirectSettings } from '../workers/filter-settings.ts';
import type { Exchange } from './exchange.ts';
import { PathRewrite } from './path-rewrite.ts';

const http = new Text('http://');
const https = new Text('https://');
const locationLine = new Text('content-length: 0\r\nlocation: ');

/** Room for what is not host and path. */
const FIXED_BYTES = 256;

const COLON = 58;
const SLASH = 47;
const ASTERISK = 42;

const encoder = new TextEncoder();

export class Redirect {
  private readonly settings: RedirectSettings;
  private readonly start: Text;
  /** Null: the request's. */
  private readonly hostname: Uint8Array | null;
  private readonly path: PathRewrite | null;

  constructor(settings: RedirectSettings) {
    this.settings = settings;
    this.start = statusLine(settings.status);
    this.hostname = settings.hostname === '' ? null : encoder.encode(settings.hostname);
    this.path = settings.path === null ? null : new PathRewrite(settings.path);
  }

  /** Whether there is a host to redirect this request to. */
  hasHost(exchange: Exchange): boolean {
    return this.hostname !== null || exchange.hostLength > 0;
  }

  /** Upper bound of what `put` writes. */
  bytesMax(exchange: Exchange): number {
    const { pathLength } = exchange;
    return (
      FIXED_BYTES +
      exchange.hostLength +
      (this.hostname?.length ?? 0) +
      (this.path === null ? pathLength : this.path.bytesMax(pathLength))
    );
  }

  /** Writes the whole response to a prepared request, as HTTP/1 text. Returns the offset after it. Spills. */
  put(reactor: Reactor, at: number, exchange: Exchange): number {
    const { memory, view } = reactor;
    const { hostOffset, hostLength } = exchange;
    const { settings, hostname } = this;
    const listener = exchange.downstream!.listener!;
    const secure = settings.scheme === '' ? listener.https : settings.scheme === 'https';
    let dest = putText(view, at, this.start);
    dest = putText(view, dest, locationLine);
    dest = putText(view, dest, secure ? https : http);
    const bareLength = hostOnlyLength(memory, hostOffset, hostLength);
    dest = hostname === null ? putRange(memory, dest, hostOffset, bareLength) : putBytes(memory, dest, hostname);
    const wellKnown = secure ? 443 : 80;
    let { port } = settings;
    if (port === 0) port = settings.scheme === '' ? listener.settings.port : wellKnown;
    if (port === 0) {
      // The system has chosen the listener's port: the client knows it.
      dest = putRange(memory, dest, hostOffset + bareLength, hostLength - bareLength);
    } else if (port !== wellKnown) {
      memory[dest++] = COLON;
      dest = putDecimal(memory, dest, port);
    }
    dest = this.putPath(memory, dest, exchange);
    return putLineEnd(view, putLineEnd(view, dest));
  }

  private putPath(memory: Uint8Array, at: number, exchange: Exchange): number {
    const { pathOffset, pathLength } = exchange;
    const first = pathLength === 0 ? ASTERISK : memory[pathOffset];
    let dest = at;
    // "OPTIONS *" is about the whole server, and has no path.
    if (first === ASTERISK) memory[dest++] = SLASH;
    else if (this.path === null) dest = putRange(memory, dest, pathOffset, pathLength);
    else dest = this.path.put(memory, dest, pathOffset, pathLength);
    return dest;
  }
}

/** Length of a host without its port; brackets of an IPv6 address stay. */
export function hostOnlyLength(memory: Uint8Array, offset: number, length: number): number {
  for (let i = length - 1; i >= 0; i--) {
    const byte = memory[offset + i];
    if (byte === COLON) return i;
    if (byte < 48 || byte > 57) break;
  }
  return length;
}
