// Which share of this node's requests goes to which zone, as in Envoy's zone aware routing.
//
// Every zone is taken to send the same share of all requests, since a gateway does not know how many
// others there are. Then a zone with at least that share of the endpoints' weight keeps its requests to
// itself; one with less keeps what its endpoints can carry, and the rest goes to zones that have more
// than their share, in proportion to what they have to spare.
// Pure; runs when endpoints or their health change, not per request.

/**
 * Shares (0 to 1, sum 1) of the zones in `weights`, whose values are the usable weight of each; `zones` is the
 * number of zones that send requests. Zones without a share are left out.
 */
export function zoneShares(weights: ReadonlyMap<string, number>, local: string, zones: number): Map<string, number> {
  let total = 0;
  for (const weight of weights.values()) total += weight;
  const shares = new Map<string, number>();
  if (total === 0) return shares;
  const sent = 1 / zones;
  const kept = Math.min(1, (weights.get(local) ?? 0) / total / sent);
  if (kept > 0) shares.set(local, kept);
  if (kept === 1) return shares;
  const spare = new Map<string, number>();
  let spareTotal = 0;
  for (const [zone, weight] of weights) {
    const rest = weight / total - sent;
    if (zone === local || rest <= 0) continue;
    spare.set(zone, rest);
    spareTotal += rest;
  }
  for (const [zone, rest] of spare) shares.set(zone, ((1 - kept) * rest) / spareTotal);
  return shares;
}
