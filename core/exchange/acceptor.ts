// Accepting connections from a worker's own listening socket.
//
// When the process has run out of descriptors, clients must not be left hanging in the accept
// queue: a spare descriptor is given up for a moment, the connection accepted and closed, and the
// spare taken again. When slots or buffers are short, new connections are closed at once so that
// those in progress can finish. Both are counted.
// Owned by one worker. Hot module.

import { Errno } from '../ffi/errno.ts';
import type { Connection, Protocol } from '../io/connection.ts';
import { Counter } from '../telemetry/metrics.ts';
import type { ProxyContext } from './context.ts';
import { OverloadLevel } from './overload.ts';
import type { ListenerRuntime } from './runtime.ts';

/** Connections taken per event, so that a burst of new ones does not starve those in progress. */
const ACCEPTS_PER_EVENT = 64;

/** Connections taken from a listener that closes: more than a backlog of 4096 holds. */
const ACCEPTS_LAST = 8192;

/** Slots kept free for upstream connections of exchanges in progress. */
const SLOTS_RESERVED = 8;

/** Pause of accepting when there is no descriptor at all, or the gateway is overloaded. */
const ACCEPT_PAUSE_MS = 50;

/** Share of buffer memory in use beyond which new connections are refused. */
const BUFFER_SHARE_MAX = 0.95;

export class Acceptor implements Protocol {
  private readonly context: ProxyContext;
  private spareFd: number;

  constructor(context: ProxyContext) {
    this.context = context;
    this.spareFd = context.reactor.kernel.eventfd();
    context.reactor.noteSpare(this.spareFd);
  }

  readable(watch: Connection): void {
    const { reactor, runtime } = this.context;
    if (runtime.node.overload >= OverloadLevel.ACCEPT) {
      // Clients wait in the system's queue until there is room for them.
      reactor.pauseWatch(watch, true);
      reactor.setTimer(watch, ACCEPT_PAUSE_MS);
      return;
    }
    if (watch.listener!.settings.mesh === null) this.accept(watch, ACCEPTS_PER_EVENT);
    else this.acceptForWorkload(watch, watch.listener!);
  }

  /** What its workload may not have yet waits in the system's queue. */
  private acceptForWorkload(watch: Connection, listener: ListenerRuntime): void {
    const { mesh, reactor } = this.context;
    const pauseMs = mesh.pauseMs(listener);
    if (pauseMs > 0) {
      reactor.pauseWatch(watch, true);
      reactor.setTimer(watch, pauseMs);
    } else {
      this.accept(watch, Math.min(ACCEPTS_PER_EVENT, mesh.acceptsMax(listener)));
    }
  }

  /** Accepts everything that is waiting, for a listener that is about to close. */
  takeAll(watch: Connection): void {
    this.accept(watch, ACCEPTS_LAST);
  }

  private accept(watch: Connection, countMax: number): void {
    const { context } = this;
    const { reactor, counters } = context;
    const { kernel } = reactor;
    for (let count = 0; count < countMax; count++) {
      const fd = kernel.accept(watch.fd);
      if (fd < 0) {
        if (fd === -Errno.EAGAIN) return;
        if (fd === -Errno.EINTR || fd === -Errno.ECONNABORTED || fd === -Errno.EPROTO) continue;
        counters[Counter.ACCEPT_FAILURES]++;
        if (fd !== -Errno.EMFILE && fd !== -Errno.ENFILE) return;
        if (this.shedWithSpare(watch)) continue;
        // Not even that: look again a little later instead of spinning.
        reactor.pauseWatch(watch, true);
        reactor.setTimer(watch, ACCEPT_PAUSE_MS);
        return;
      }
      if (
        reactor.slotsFree <= SLOTS_RESERVED ||
        reactor.arena.usedBytes > reactor.arena.capacityBytes * BUFFER_SHARE_MAX
      ) {
        counters[Counter.CONNECTIONS_SHED]++;
        kernel.close(fd);
        continue;
      }
      const connection = reactor.openStream(fd, context.preamble);
      if (connection === null) {
        counters[Counter.CONNECTIONS_SHED]++;
        continue;
      }
      reactor.readAddress(connection);
      connection.listener = watch.listener;
      counters[Counter.DOWNSTREAM_ACCEPTED]++;
      counters[Counter.DOWNSTREAM_OPEN]++;
      if (watch.listener!.settings.mesh === null) context.preamble.accepted(connection);
      else context.mesh.accepted(connection);
    }
  }

  writable(): void {}

  sendFailed(): void {}

  /** A pause is over. */
  expired(watch: Connection): void {
    this.context.reactor.pauseWatch(watch, false);
  }

  /** Refuses one waiting connection although no descriptor is free. Returns whether it could. */
  private shedWithSpare(watch: Connection): boolean {
    const { reactor } = this.context;
    const { kernel } = reactor;
    if (this.spareFd < 0) {
      this.spareFd = kernel.eventfd();
      reactor.noteSpare(this.spareFd);
      return false;
    }
    kernel.close(this.spareFd);
    this.spareFd = -1;
    const fd = kernel.accept(watch.fd);
    if (fd >= 0) {
      this.context.counters[Counter.CONNECTIONS_SHED]++;
      kernel.close(fd);
    }
    this.spareFd = kernel.eventfd();
    reactor.noteSpare(this.spareFd);
    return fd >= 0;
  }

  /** Gives the spare descriptor back at shutdown. */
  close(): void {
    if (this.spareFd >= 0) this.context.reactor.kernel.close(this.spareFd);
    this.spareFd = -1;
    this.context.reactor.noteSpare(-1);
  }
}
