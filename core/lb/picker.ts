// The interface of a balancing policy. One file per policy beside this one.
// A picker belongs to one worker and one backend of one snapshot. Hot: `pick` allocates nothing.

/** Chooses an endpoint of a backend for a request. */
export interface Picker {
  /** Index of the endpoint to use, or -1 when the backend has none. */
  pick(): number;
}
