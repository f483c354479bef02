// Answers to the challenges of an ACME server, for as long as an order is under way: a text under
// /.well-known/acme-challenge/ (HTTP-01, RFC 8555 §8.3), or a handshake with a certificate made for
// it (TLS-ALPN-01, RFC 8737). The control thread orders; every worker answers.
// Owned by one worker. Empty nearly always, and then costs a null check.

import { type ClientHello, offersAlpn } from '../tls/client-hello.ts';
import { createServerContext, freeContext, type TlsContext } from '../tls/context.ts';
import type { AcmeChallengeSettings } from '../workers/protocol.ts';

const encoder = new TextEncoder();
const acmeProtocol = encoder.encode('acme-tls/1');

/** Where HTTP-01 challenges are asked for. */
export const ACME_PATH = '/.well-known/acme-challenge/';
const acmePath = encoder.encode(ACME_PATH);

export class AcmeChallenges {
  /** Key authorizations by token; null: none. */
  private texts: Map<string, string> | null = null;
  private contexts: Map<string, TlsContext> | null = null;

  /** Takes the challenges that are open now; those before are over. */
  use(settings: AcmeChallengeSettings): void {
    for (const context of this.contexts?.values() ?? []) freeContext(context);
    this.texts =
      settings.http.length === 0 ? null : new Map(settings.http.map((one) => [one.token, one.keyAuthorization]));
    this.contexts =
      settings.tls.length === 0
        ? null
        : new Map(
            settings.tls.map(({ hostname, chainPem, keyPem }) => [
              hostname,
              createServerContext({ certificates: [{ chainPem, keyPem }], alpn: ['acme-tls/1'], ticketKeys: null }),
            ]),
          );
  }

  /** The answer to a request for the path at `offset`, or null when it is for no open challenge. */
  answer(memory: Uint8Array, offset: number, length: number): string | null {
    const { texts } = this;
    if (texts === null || length <= acmePath.length) return null;
    for (let i = 0; i < acmePath.length; i++) if (memory[offset + i] !== acmePath[i]) return null;
    return (
      texts.get(Buffer.from(memory.subarray(offset + acmePath.length, offset + length)).toString('latin1')) ?? null
    );
  }

  /** The context for a handshake that is a challenge, or null. */
  challengeFor(serverName: string | null, memory: Uint8Array, hello: ClientHello): TlsContext | null {
    if (this.contexts === null || serverName === null || !offersAlpn(memory, hello, acmeProtocol)) return null;
    return this.contexts.get(serverName) ?? null;
  }
}
