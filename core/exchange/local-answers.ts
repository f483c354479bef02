// Answers that need no upstream and are no failures: the redirect of a whole listener to https, the texts that an
// ACME server asks for, and what filters answer (redirects, direct responses, CORS preflight requests).
// Written as HTTP/1.1 into scratch memory; the client's side parses and sends them like any response, so
// that they are the same over HTTP/2.
// Owned by one worker. No allocation for redirects; ACME challenges are rare.
// Spec: RFC 9110 §15.4 (redirects), RFC 8555 §8.3 (HTTP-01).

import { Method } from '../http1/message.ts';
import { HEADROOM_BYTES, SCRATCH_BYTES } from '../io/arena.ts';
import { putBytes, putDecimal, putLineEnd, putRange, putText, Text } from '../io/bytes.ts';
import type { Reactor } from '../io/reactor.ts';
import type { AcmeChallenges } from './acme-challenges.ts';
import type { DirectResponse } from './direct-response.ts';
import type { Exchange } from './exchange.ts';
import { valueEquals } from './fields.ts';
import { hostOnlyLength, type Redirect } from './redirects.ts';

const redirectPhrases: Record<number, string> = {
  301: 'Moved Permanently',
  302: 'Found',
  303: 'See Other',
  307: 'Temporary Redirect',
  308: 'Permanent Redirect',
};
const redirectStarts = new Map<number, Text>();
for (const [status, phrase] of Object.entries(redirectPhrases)) {
  const text = `HTTP/1.1 ${status} ${phrase}\r\ncontent-length: 0\r\nlocation: https://`;
  redirectStarts.set(Number(status), new Text(text));
}
const textFields = new Text('HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\ncontent-length: ');

/** What is said where there is nowhere to redirect to: such a request must not be served instead. */
const noHost = refusal('400 Bad Request', 'This address only redirects to https, and the request names no host.\n');
const tooLong = refusal(
  '414 URI Too Long',
  'This address only redirects to https, and the URL is too long for that.\n',
);

/** What a redirect filter says where it cannot redirect. */
const noHostForFilter = refusal('400 Bad Request', 'This URL is redirected, and the request names no host.\n');
const tooLongForFilter = refusal('414 URI Too Long', 'This URL is redirected, and it is too long for that.\n');

/** As Envoy answers them. */
const preflightAnswer = new Text('HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n');

/** Room for everything but host and path of a redirect. */
const REDIRECT_FIXED_BYTES = 256;

const encoder = new TextEncoder();

export class LocalAnswers {
  /** The answer that `answers` has written. */
  offset = 0;
  length = 0;
  private readonly reactor: Reactor;
  private readonly acme: AcmeChallenges;

  constructor(reactor: Reactor, acme: AcmeChallenges) {
    this.reactor = reactor;
    this.acme = acme;
  }

  /** Whether a prepared request is answered here; the answer is written then. */
  answers(exchange: Exchange): boolean {
    const { memory } = this.reactor;
    const challenge = this.acme.answer(memory, exchange.pathOffset, exchange.pathLength);
    if (challenge !== null) {
      this.writeText(challenge);
      return true;
    }
    const { redirectToHttps } = exchange.downstream!.listener!.settings;
    // A tunnel has no URL.
    if (redirectToHttps === null || exchange.method === Method.CONNECT) return false;
    if (exchange.hostLength === 0 || this.hostIsOurs(exchange)) {
      this.writeFixed(noHost);
    } else if (exchange.pathLength + exchange.hostLength + REDIRECT_FIXED_BYTES > SCRATCH_BYTES - HEADROOM_BYTES) {
      this.writeFixed(tooLong);
    } else {
      this.writeRedirect(exchange, redirectToHttps.status, redirectToHttps.port);
    }
    return true;
  }

  /** Writes the redirect of a filter. */
  redirect(exchange: Exchange, redirect: Redirect): void {
    const { arena } = this.reactor;
    if (!redirect.hasHost(exchange)) {
      this.writeFixed(noHostForFilter);
    } else if (redirect.bytesMax(exchange) > SCRATCH_BYTES - HEADROOM_BYTES) {
      this.writeFixed(tooLongForFilter);
    } else {
      this.offset = arena.scratchOffset + HEADROOM_BYTES;
      this.length = redirect.put(this.reactor, this.offset, exchange) - this.offset;
    }
  }

  /** Writes the response of a filter. */
  direct(exchange: Exchange, direct: DirectResponse): void {
    this.offset = this.reactor.arena.scratchOffset + HEADROOM_BYTES;
    this.length = direct.put(this.reactor, this.offset, exchange.grpc) - this.offset;
  }

  /** Writes the answer to a CORS preflight request, without the fields of CORS. */
  preflight(): void {
    this.writeFixed(preflightAnswer);
  }

  /** Writes a whole response that is ready. */
  fixed(text: Text): void {
    this.writeFixed(text);
  }

  /**
   * Whether the host is the endpoint's address, which stands in for Host when an HTTP/1.0 client gave
   * none (request-head.ts): clients have no business with it.
   */
  private hostIsOurs(exchange: Exchange): boolean {
    if (exchange.versionMinor !== 0 || exchange.backend < 0 || exchange.endpoint < 0) return false;
    const { addressBytes } = exchange.runtime!.backends[exchange.backend].endpoints[exchange.endpoint];
    return valueEquals(this.reactor.memory, exchange.hostOffset, exchange.hostLength, addressBytes);
  }

  private writeRedirect(exchange: Exchange, status: number, port: number): void {
    const { memory, view, arena } = this.reactor;
    this.offset = arena.scratchOffset + HEADROOM_BYTES;
    let at = putText(view, this.offset, redirectStarts.get(status) ?? redirectStarts.get(301)!);
    at = putRange(memory, at, exchange.hostOffset, hostOnlyLength(memory, exchange.hostOffset, exchange.hostLength));
    if (port !== 443) {
      memory[at++] = 58;
      at = putDecimal(memory, at, port);
    }
    // "OPTIONS *" is about the whole server; all else is the path.
    if (memory[exchange.pathOffset] === 42) memory[at++] = 47;
    else at = putRange(memory, at, exchange.pathOffset, exchange.pathLength);
    at = putLineEnd(view, putLineEnd(view, at));
    this.length = at - this.offset;
  }

  private writeFixed(text: Text): void {
    this.offset = this.reactor.arena.scratchOffset + HEADROOM_BYTES;
    this.length = putText(this.reactor.view, this.offset, text) - this.offset;
  }

  private writeText(text: string): void {
    const { memory, view, arena } = this.reactor;
    const bytes = encoder.encode(text);
    this.offset = arena.scratchOffset + HEADROOM_BYTES;
    let at = putText(view, this.offset, textFields);
    at = putDecimal(memory, at, bytes.length);
    at = putLineEnd(view, putLineEnd(view, at));
    this.length = putBytes(memory, at, bytes) - this.offset;
  }
}

/** A whole response that says why. */
function refusal(status: string, sentence: string): Text {
  const fields = `content-type: text/plain; charset=utf-8\r\ncontent-length: ${sentence.length}`;
  return new Text(`HTTP/1.1 ${status}\r\n${fields}\r\n\r\n${sentence}`);
}
