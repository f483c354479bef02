// How load is shared among priority levels, and when a level panics, as Envoy documents it.
// Pure functions; run when endpoints or their health change, not per request.
// Source: Envoy, "Priority levels" and "Panic threshold".

/** Endpoints of one level. */
export interface LevelHealth {
  /** Endpoints that could be used, healthy or not. */
  total: number;
  /** Those that can be used; one of which passive health withholds a part counts as the rest. */
  usable: number;
}

/** What a level gets. */
export interface LevelLoad {
  /** Share of the requests, whole percent; all levels together have 100, unless none can be used. */
  percent: number;
  /** All endpoints of the level are used, whatever their health. */
  panic: boolean;
}

/** Loads of levels, the first priority first. */
export function levelLoads(
  levels: readonly LevelHealth[],
  overprovisioningPercent: number,
  panicThresholdPercent: number,
): LevelLoad[] {
  // A level that has anything to use has a health of at least 1, however many endpoints it has lost.
  const health = levels.map(({ total, usable }) =>
    usable <= 0 ? 0 : Math.max(1, Math.min(100, Math.floor((overprovisioningPercent * usable) / total + 1e-9))),
  );
  const totalHealth = Math.min(
    100,
    health.reduce((sum, one) => sum + one, 0),
  );
  // While the levels together can carry everything, no level panics, however few endpoints it has left.
  const panics = levels.map(
    ({ total, usable }) =>
      totalHealth < 100 && total > 0 && (100 * usable) / total < panicThresholdPercent && panicThresholdPercent > 0,
  );
  const filled = levels.map(({ total }, index) => total === 0 || panics[index]);
  if (filled.every(Boolean) && panics.some(Boolean)) return byCount(levels);
  const loads = distribute(health, totalHealth);
  return levels.map((_, index) => ({ percent: loads[index]!, panic: panics[index]! }));
}

/** Each level takes what it can carry; when all together cannot, in proportion. */
function distribute(health: readonly number[], totalHealth: number): number[] {
  let left = 100;
  const loads = health.map((one) => {
    const load = totalHealth === 0 ? 0 : Math.min(left, Math.floor((one * 100) / totalHealth));
    left -= load;
    return load;
  });
  // What rounding has left over goes to the first that can take it.
  const first = health.findIndex((one) => one > 0);
  if (first >= 0) loads[first]! += left;
  return loads;
}

/** All levels panic: health says nothing any more, and load goes by the number of endpoints. */
function byCount(levels: readonly LevelHealth[]): LevelLoad[] {
  const total = levels.reduce((sum, level) => sum + level.total, 0);
  let left = 100;
  const loads = levels.map((level) => {
    const load = Math.floor((100 * level.total) / total);
    left -= load;
    return load;
  });
  loads[levels.findIndex((level) => level.total > 0)]! += left;
  return levels.map((level, index) => ({ percent: loads[index]!, panic: level.total > 0 }));
}
