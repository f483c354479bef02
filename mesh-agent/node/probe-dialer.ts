// How health checks of a node proxy reach workloads: through tunnels, as all else does that goes to them.
//
//   TCP --> TLS 1.3, both sides with certificates --> HTTP/2 --CONNECT address:port--> 200: the tunnel
//
// Checks are nobody's traffic, so no workload's certificate is used for them but the proxy's own (a sidecar has no
// other than its workload's), and they start in the network namespace of the proxy. The other end is verified as packet
// workers do it: by the trust bundle, and by the very identity that the mesh says the workload has.
// Each check opens a tunnel of its own, with the certificate and the roots of that moment: so a check also shows that
// one can be opened now, a renewal or a rotation takes effect at the next one, and nothing has to be kept, watched and
// ended where they change. What a handshake costs more is paid once in the interval of the check.
// Control thread of the proxy. Spec: Istio ambient's HBONE; RFC 9113 §8.5 (CONNECT).

import { connect as connectHttp2 } from 'node:http2';
import { connect as connectTcp, Socket } from 'node:net';
import type { Duplex } from 'node:stream';
import { connect as connectTls, createSecureContext, type SecureContext, type TLSSocket } from 'node:tls';
import { formatAddress } from '../../config/names.ts';
import { Errno, errnoName } from '../../core/ffi/errno.ts';
import type { NamespaceSockets } from '../../core/ffi/netns.ts';
import { parseAlternativeNames } from '../../core/tls/peer.ts';
import { CheckNotMade, type Dial } from '../../gateway/health/probe-connection.ts';
import { OWN_NAMESPACE } from '../capture/capture.ts';
import { CAPTURE_MARK, TUNNEL_PORT } from '../capture/spec.ts';
import { bundleToPem, type TrustBundle } from '../identity/trust-bundle.ts';
import type { WorkloadCertificate } from '../identity/workload-certificates.ts';

/**
 * Opens a TCP connection, which may still be under way, or have failed without anybody having heard it. Rejects with
 * the system's error, or `CheckNotMade` for one that is not the endpoint's.
 */
export type Connect = (host: string, port: number) => Promise<Socket>;

/** Whose certificate is shown and who is trusted, and what tests do in another way. */
export interface ProbeDialerOptions {
  /** The proxy's own certificate as it is now; null: there is no valid one. */
  certificate: () => WorkloadCertificate | null;
  /** The roots as they are now. */
  bundle: () => TrustBundle;
  /** Default: as the process connects. */
  connect?: Connect;
  tunnelPort?: number;
}

/** What the network says of an endpoint when a socket is connected; all else is a fault of this side. */
const NETWORK_ERRNOS: readonly number[] = [
  ...[Errno.ECONNREFUSED, Errno.ECONNRESET, Errno.ETIMEDOUT, Errno.EHOSTUNREACH, Errno.ENETUNREACH],
];

/** Connects health checks to endpoints of the mesh. */
export class ProbeDialer {
  private readonly options: ProbeDialerOptions;
  /** Made of the certificate and the roots that were last used; hundreds of checks may share it. */
  private context: { certificate: WorkloadCertificate; bundle: TrustBundle; secure: SecureContext } | null = null;

  /** Opens nothing yet. */
  constructor(options: ProbeDialerOptions) {
    this.options = options;
  }

  /** See `Dial`. */
  readonly dial: Dial = async ({ host, port, identity }, signal) => {
    const { certificate: current, tunnelPort = TUNNEL_PORT } = this.options;
    if (identity === null) {
      const stream = await this.open(host, port, signal);
      await connected(stream);
      return { stream, tunnelAs: null };
    }
    const certificate = current();
    if (certificate === null) throw new CheckNotMade('not checked: this proxy has no valid certificate for tunnels');
    const secureContext = this.contextOf(certificate);
    const secure = await greet(await this.open(host, tunnelPort, signal), secureContext, identity);
    return {
      stream: await ask(secure, formatAddress(host, port), certificate.identity),
      tunnelAs: certificate.identity,
    };
  };

  /** A socket that an abort closes, also when it comes only after that. */
  private open(host: string, port: number, signal: AbortSignal): Promise<Socket> {
    const { connect = connectHere } = this.options;
    return new Promise((resolve, reject) => {
      signal.throwIfAborted();
      let socket: Socket | null = null;
      const stop = (): void => {
        socket?.destroy();
        // Until there is a socket, nobody but this machine has been asked for anything.
        reject(new CheckNotMade('not checked: no socket could be opened in time'));
      };
      const forget = (): void => signal.removeEventListener('abort', stop);
      signal.addEventListener('abort', stop, { once: true });
      connect(host, port).then(
        (opened) => {
          // Whoever waits for something is told by `close` as well; later it is nobody's business.
          socket = opened.on('error', () => {}).once('close', forget);
          if (signal.aborted) socket.destroy();
          else if (socket.errored !== null) reject(socket.errored);
          else resolve(socket);
        },
        (error) => {
          forget();
          reject(error);
        },
      );
    });
  }

  private contextOf(certificate: WorkloadCertificate): SecureContext {
    const bundle = this.options.bundle();
    const { context } = this;
    if (context !== null && context.certificate === certificate && context.bundle === bundle) return context.secure;
    const secure = createSecureContext({
      ...{ cert: certificate.chainPem, key: certificate.keyPem, ca: bundleToPem(bundle) },
      ...{ minVersion: 'TLSv1.3', maxVersion: 'TLSv1.3' },
    });
    this.context = { certificate, bundle, secure };
    return secure;
  }
}

/** Connections of a sidecar, past the rules that capture those of its workload. `sockets` is used and not closed. */
export function connectMarked(sockets: Pick<NamespaceSockets, 'open'>): Connect {
  return async (host, port) => {
    const opened = await sockets.open(OWN_NAMESPACE, { kind: 'dial', host, port, mark: CAPTURE_MARK });
    if (opened.ok) return new Socket({ fd: opened.fds[0]! });
    const { code, errno, message } = opened;
    if (code === 'SOCKET_FAILED' && NETWORK_ERRNOS.includes(errno)) {
      throw Object.assign(new Error(message), { code: errnoName(errno) });
    }
    throw new CheckNotMade(`not checked: ${message}`);
  };
}

async function connectHere(host: string, port: number): Promise<Socket> {
  // One that fails at once does so before the caller has the socket: unheard, that would end the process.
  return connectTcp({ host, port }).on('error', () => {});
}

/** Resolves when a socket is connected, however it was opened: it takes a write of nothing then. */
function connected(socket: Socket): Promise<void> {
  return new Promise((resolve, reject) => {
    rejectAtEnd(socket, reject);
    socket.write('', (error) => (error == null ? resolve() : reject(error)));
  });
}

/** TLS of a tunnel: resolves when either side has shown who it is. */
function greet(socket: Socket, secureContext: SecureContext, identity: string): Promise<TLSSocket> {
  return new Promise((resolve, reject) => {
    rejectAtEnd(socket, reject);
    const secure = connectTls({
      // Not left to NODE_TLS_REJECT_UNAUTHORIZED.
      ...{ socket, secureContext, ALPNProtocols: ['h2'], rejectUnauthorized: true },
      // Called for a chain that is trusted. An identity of the mesh is the only URI of its certificate (X.509-SVID §2).
      checkServerIdentity: (_host, { subjectaltname = '' }) => {
        const { uri } = parseAlternativeNames(subjectaltname);
        if (uri.length === 1 && uri[0] === identity) return undefined;
        return new Error(`the other end of the tunnel is ${uri.join(', ') || 'nobody'}, not ${identity}`);
      },
    });
    rejectAtEnd(secure, reject);
    secure.once('secureConnect', () => {
      if (secure.alpnProtocol === 'h2') resolve(secure);
      else secure.destroy(new Error('the other end of the tunnel does not speak HTTP/2'));
    });
  });
}

/** Asks for a tunnel to an authority; resolves with it. It takes the connection with it when it ends. */
function ask(secure: TLSSocket, authority: string, own: string): Promise<Duplex> {
  return new Promise((resolve, reject) => {
    const session = connectHttp2(`https://${authority}`, { createConnection: () => secure });
    rejectAtEnd(session, reject);
    const stream = session.request({ ':method': 'CONNECT', ':authority': authority });
    rejectAtEnd(stream, reject);
    stream.once('close', () => session.destroy());
    stream.once('response', ({ ':status': status = 0 }) => {
      if (status >= 200 && status < 300) resolve(stream);
      else stream.destroy(new Error(`the tunnel was refused with status ${status} to ${own}`));
    });
  });
}

/** Hears of the end of something, with its cause if there is one, for as long as that lives. */
function rejectAtEnd(
  ending: { on(event: 'error' | 'close', listener: (error?: Error) => void): unknown },
  reject: (error: Error) => void,
): void {
  ending.on('error', (error) => reject(error!));
  ending.on('close', () => reject(new Error('connection closed')));
}
