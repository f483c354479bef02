// The admin port as the configuration wants it: opened at start, moved by a reload.
// Owned by the control thread.

import type { AdminConfig } from '../config/config.ts';
import { formatAddress } from '../config/names.ts';
import type { AdminServer } from '../core/process/admin-pages.ts';
import { cannotListen } from '../core/process/listen-failure.ts';
import type { AdminState } from './admin/state.ts';

/** A listening admin port. */
export class AdminPort {
  private readonly server: AdminServer;

  /** Opens it, or returns null when it is off; throws an ExitError with one sentence. */
  static async open(config: AdminConfig | null, state: AdminState): Promise<AdminPort | null> {
    if (config === null) return null;
    // Imported only where it is on: the metrics library is a good part of a short start.
    const { startAdminServer } = await import('./admin/server.ts');
    try {
      return new AdminPort(await startAdminServer(config.host, config.port, state));
    } catch (error) {
      throw cannotListen('the admin port', formatAddress(config.host, config.port), error);
    }
  }

  private constructor(server: AdminServer) {
    this.server = server;
  }

  /** Where it listens, `host:port`. */
  get address(): string {
    return formatAddress(this.server.host, this.server.port);
  }

  /** Closes it and all its connections. */
  close(): void {
    void this.server.close();
  }
}
