// Builds every TLS context of a snapshot once on the control thread, so that what OpenSSL refuses is
// found before a worker hears of it.
// Control thread.

import { ExitCode, ExitError } from '../../core/process/exit-codes.ts';
import { createClientContext, createServerContext, freeContext, type TlsContext } from '../../core/tls/context.ts';
import type { Snapshot } from '../../core/workers/snapshot.ts';

/** Keys of contexts that could be built; the same key means the same context. */
let known = new Set<string>();

/** Throws an ExitError with one sentence for the first context that cannot be built. */
export function tryTls({ tls, backends }: Pick<Snapshot, 'tls' | 'backends'>): void {
  const keys = new Set<string>();
  const attempt = (key: string, what: string, make: () => TlsContext): void => {
    keys.add(key);
    if (known.has(key)) return;
    try {
      freeContext(make());
    } catch (error) {
      throw new ExitError(ExitCode.CONFIG_INVALID, `${what} cannot be set up: ${(error as Error).message}.`);
    }
  };
  for (const { key, certificates, clientValidation, ...rest } of tls.contexts) {
    attempt(key, 'TLS of a listener', () =>
      createServerContext({
        certificates,
        alpn: rest.alpn,
        ticketKeys: null,
        ...(clientValidation === null ? {} : { clientValidation }),
        ...versionsAndCiphers(rest),
      }),
    );
  }
  for (const { name, tls: settings, protocol } of backends) {
    if (settings === null) continue;
    const { key, caPem, certificate, verify } = settings;
    attempt(key, `TLS of the backend ${name}`, () =>
      createClientContext({
        alpn: [protocol],
        verify,
        ...(caPem === null ? {} : { caPem }),
        ...(certificate === null ? {} : { certificate }),
        ...versionsAndCiphers(settings),
      }),
    );
  }
  known = keys;
}

/** Empty lists stand for the defaults. */
function versionsAndCiphers(settings: {
  minVersion: '1.2' | '1.3';
  maxVersion: '1.2' | '1.3';
  ciphers?: string;
  cipherSuites?: string;
}) {
  const { minVersion, maxVersion, ciphers = '', cipherSuites = '' } = settings;
  return {
    minVersion,
    maxVersion,
    ...(ciphers === '' ? {} : { ciphers }),
    ...(cipherSuites === '' ? {} : { cipherSuites }),
  };
}
