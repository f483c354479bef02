// By which name a node recognises the control plane, for gRPC channels.
//
// grpc-js shows the server its name (SNI), which an IP address must not be (RFC 6066 §3). So an address is verified by a
// check of our own, and a name that nobody has is shown. Control thread of a node.

import { isIP } from 'node:net';
import { checkServerIdentity, type PeerCertificate } from 'node:tls';
import { parseAddress } from '../../config/names.ts';

/** What is shown to a server that is known by its address (RFC 2606). */
const NO_NAME = 'control-plane.invalid';

/** How to verify a server. */
export interface ServerName {
  /** Value of `grpc.ssl_target_name_override`. */
  override: string;
  /** Options of `credentials.createSsl`. */
  verify: { checkServerIdentity?: (host: string, certificate: PeerCertificate) => Error | undefined };
}

/** For the server at `address` (`host:port`), whose certificate has `name`, or else the host. */
export function serverNameOf(address: string, name?: string): ServerName {
  const parsed = parseAddress(address);
  const wanted = name ?? (typeof parsed === 'string' ? address : parsed.host);
  if (isIP(wanted) === 0) return { override: wanted, verify: {} };
  return {
    override: NO_NAME,
    verify: { checkServerIdentity: (_host, certificate) => checkServerIdentity(wanted, certificate) },
  };
}
