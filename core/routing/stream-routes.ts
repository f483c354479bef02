// Which backend takes the connections of a listener that are not HTTP: TCP routes, and TLS routes by
// the name in SNI. Exact names come before wildcards, longer wildcards before shorter ones, and
// routes with names before those without (Gateway API TLSRoute).
// Immutable once made; looked up once per connection.

import type { StreamRouteSettings } from '../workers/snapshot.ts';

/** A route of connections. */
export class StreamRoute {
  private readonly name: string;
  private bytes: Uint8Array | null = null;
  readonly backends: readonly number[];
  readonly weights: readonly number[];
  readonly weightTotal: number;

  constructor(settings: StreamRouteSettings) {
    const refs = settings.backendRefs.filter((ref) => ref.weight > 0);
    this.name = settings.name;
    this.backends = refs.map((ref) => ref.backend);
    this.weights = refs.map((ref) => ref.weight);
    this.weightTotal = this.weights.reduce((sum, weight) => sum + weight, 0);
  }

  /** Its name; made when first asked for. */
  get nameBytes(): Uint8Array {
    this.bytes ??= new TextEncoder().encode(this.name);
    return this.bytes;
  }

  /** The backend for a number drawn at random from 0 to 2^31 - 1; -1 when the route has none. */
  pick(random: number): number {
    if (this.weightTotal === 0) return -1;
    let share = random % this.weightTotal;
    let index = 0;
    while (share >= this.weights[index]) share -= this.weights[index++];
    return this.backends[index];
  }
}

/** All stream routes of a snapshot. */
export class StreamRoutes {
  /** Routes by `listener/name`; the name is exact, begins with `*.`, or is empty for any. */
  private readonly routes = new Map<string, StreamRoute>();

  constructor(settings: readonly StreamRouteSettings[]) {
    for (const one of settings) {
      const route = new StreamRoute(one);
      for (const listener of one.listeners) {
        for (const hostname of one.hostnames.length === 0 ? [''] : one.hostnames) {
          const key = `${listener}/${hostname}`;
          if (!this.routes.has(key)) this.routes.set(key, route);
        }
      }
    }
  }

  /** The route for a connection of listener `listener` whose client asked for `serverName` (lower case). */
  lookup(listener: number, serverName: string | null): StreamRoute | null {
    if (serverName !== null) {
      const exact = this.routes.get(`${listener}/${serverName}`);
      if (exact !== undefined) return exact;
      for (let dot = serverName.indexOf('.'); dot >= 0; dot = serverName.indexOf('.', dot + 1)) {
        const wildcard = this.routes.get(`${listener}/*${serverName.slice(dot)}`);
        if (wildcard !== undefined) return wildcard;
      }
    }
    return this.routes.get(`${listener}/`) ?? null;
  }
}
