// The TLS contexts of one worker, kept across snapshots by the hash of what they are made of.
//
// A snapshot's contexts are made before those of the one before are given back, so that an unchanged
// certificate costs nothing at a reload; sessions keep the context that they began with.
// Owned by one worker; used between batches.

import type { BackendTlsSettings, ServerContextSettings, TlsSettings } from '../workers/snapshot.ts';
import { createClientContext, createServerContext, freeContext, type TlsContext, updateTicketKeys } from './context.ts';

/** Contexts by what they are made of. */
export class TlsContexts {
  private servers = new Map<string, TlsContext>();
  private clients = new Map<string, TlsContext>();
  private nextServers = new Map<string, TlsContext>();
  private nextClients = new Map<string, TlsContext>();
  private ticketKeys: Uint8Array[] = [];
  private readonly failed: (sentence: string) => void;

  /**
   * `failed` hears of settings that OpenSSL refuses. The control thread has tried them before, so that
   * is a defect; what needs the context is refused then, and all else goes on.
   */
  constructor(failed: (sentence: string) => void) {
    this.failed = failed;
  }

  /** Begins a snapshot. */
  begin(tls: TlsSettings): void {
    this.nextServers = new Map();
    this.nextClients = new Map();
    this.ticketKeys = tls.ticketKeys;
  }

  /** The context for a listener; null when OpenSSL refuses the settings. `later`: see `createServerContext`. */
  server(settings: ServerContextSettings, later = false): TlsContext | null {
    return this.take(this.servers, this.nextServers, settings.key, () =>
      createServerContext(
        {
          certificates: settings.certificates,
          minVersion: settings.minVersion,
          maxVersion: settings.maxVersion,
          ...(settings.cipherSuites === '' ? {} : { cipherSuites: settings.cipherSuites }),
          ...(settings.ciphers === '' ? {} : { ciphers: settings.ciphers }),
          ...(settings.clientValidation === null ? {} : { clientValidation: settings.clientValidation }),
          alpn: settings.alpn,
          ticketKeys: settings.sessionTickets ? this.ticketKeys : null,
        },
        later && !settings.sessionTickets,
      ),
    );
  }

  /** The context for connections to a backend that speak `alpn`; null like `server`. */
  client(settings: BackendTlsSettings, alpn: string, later = false): TlsContext | null {
    return this.take(this.clients, this.nextClients, `${alpn} ${settings.key}`, () =>
      createClientContext(
        {
          ...(settings.caPem === null ? {} : { caPem: settings.caPem }),
          ...(settings.certificate === null ? {} : { certificate: settings.certificate }),
          alpn: [alpn],
          minVersion: settings.minVersion,
          maxVersion: settings.maxVersion,
          verify: settings.verify,
        },
        later,
      ),
    );
  }

  /** Ends a snapshot: gives back what it does not use, and brings ticket keys up to date. */
  end(): void {
    for (const [key, context] of this.servers) if (!this.nextServers.has(key)) freeContext(context);
    for (const [key, context] of this.clients) if (!this.nextClients.has(key)) freeContext(context);
    this.servers = this.nextServers;
    this.clients = this.nextClients;
    this.updateTicketKeys(this.ticketKeys);
  }

  /** New keys for all listeners: the first encrypts, all decrypt. */
  updateTicketKeys(keys: Uint8Array[]): void {
    this.ticketKeys = keys;
    for (const context of this.servers.values()) if (context.hasTickets) updateTicketKeys(context, keys);
  }

  private take(
    known: Map<string, TlsContext>,
    next: Map<string, TlsContext>,
    key: string,
    make: () => TlsContext,
  ): TlsContext | null {
    try {
      const context = next.get(key) ?? known.get(key) ?? make();
      next.set(key, context);
      return context;
    } catch (error) {
      this.failed(`a TLS context cannot be made: ${(error as Error).message}`);
      return null;
    }
  }
}
