// Challenges of ACME orders that are under way; every worker answers all of them.
// Owned by the control thread. Spec: RFC 8555 §8.3 (http-01), RFC 8737 (tls-alpn-01).

import type { AcmeChallengeSettings } from '../../core/workers/protocol.ts';

/** A challenge that an authority is about to look at. */
export type AcmeChallenge =
  | { type: 'http-01'; token: string; keyAuthorization: string }
  /** With the certificate of RFC 8737 §3 and its key. */
  | { type: 'tls-alpn-01'; hostname: string; chainPem: string; keyPem: string };

/** The open challenges. */
export class Challenges {
  private readonly open = new Map<string, AcmeChallenge>();
  private readonly publish: (challenges: AcmeChallengeSettings) => void;

  /** `publish` hands all open challenges to the workers, in place of those before. */
  constructor(publish: (challenges: AcmeChallengeSettings) => void) {
    this.publish = publish;
  }

  /** Has a challenge answered from now on; one for the same token or hostname is replaced. */
  set(challenge: AcmeChallenge): void {
    this.open.set(keyOf(challenge), challenge);
    this.publish(this.settings());
  }

  /** Ends a challenge. */
  clear(challenge: AcmeChallenge): void {
    if (this.open.delete(keyOf(challenge))) this.publish(this.settings());
  }

  /** All open challenges. */
  settings(): AcmeChallengeSettings {
    const settings: AcmeChallengeSettings = { http: [], tls: [] };
    for (const challenge of this.open.values()) {
      if (challenge.type === 'http-01') {
        const { token, keyAuthorization } = challenge;
        settings.http.push({ token, keyAuthorization });
      } else {
        const { hostname, chainPem, keyPem } = challenge;
        settings.tls.push({ hostname: hostname.toLowerCase(), chainPem, keyPem });
      }
    }
    return settings;
  }
}

function keyOf(challenge: AcmeChallenge): string {
  return challenge.type === 'http-01' ? `http ${challenge.token}` : `tls ${challenge.hostname.toLowerCase()}`;
}
