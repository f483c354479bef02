// Whether the peer of a session would still be let in: its chain verified once more, by the authorities and the time
// of now. Functions take the number of a session whose handshake is done. Owned by one thread; not on the packet path.
// Spec: RFC 5280 §6 (path validation); X509_STORE_CTX_new(3), X509_verify_cert(3).

import { clearErrors, openSsl } from '../ffi/openssl.ts';
import type { TlsContext } from './context.ts';

/** Whether a session was begun with a context. */
export function isSessionOf(ssl: number, context: TlsContext): boolean {
  return openSsl().SSL_get_SSL_CTX(ssl) === context.pointer;
}

/**
 * Whether the certificates that the peer has shown lead to an authority that `context` trusts, and are valid now. Names
 * are not looked at. A resumed session knows the peer's own certificate only: behind it there are the authorities alone.
 * Costs as much as in a handshake.
 */
export function verifiesPeer(ssl: number, context: TlsContext): boolean {
  const { SSL_get0_peer_certificate, SSL_get_peer_cert_chain, SSL_CTX_get_cert_store, X509_STORE_CTX_new } = openSsl();
  const { X509_STORE_CTX_init, X509_STORE_CTX_set_default, X509_verify_cert, X509_STORE_CTX_free } = openSsl();
  const certificate = SSL_get0_peer_certificate(ssl);
  // Nobody is let in by one that has been given back, or that OpenSSL refuses.
  if (certificate === 0 || context.released || context.pointer === 0) return false;
  const verification = X509_STORE_CTX_new();
  if (verification === 0) return false;
  // The chain may have the peer's own certificate in it: as one that others could have signed, it does no harm.
  const begun = X509_STORE_CTX_init(
    verification,
    SSL_CTX_get_cert_store(context.pointer),
    certificate,
    SSL_get_peer_cert_chain(ssl),
  );
  // As in a handshake: the certificate has to be good for the peer's side of it.
  const holds =
    begun === 1 &&
    X509_STORE_CTX_set_default(verification, context.server ? 'ssl_client' : 'ssl_server') === 1 &&
    X509_verify_cert(verification) === 1;
  X509_STORE_CTX_free(verification);
  clearErrors();
  return holds;
}
