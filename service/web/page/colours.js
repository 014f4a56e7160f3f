// The colours of the map: from never read, over rarely, to most often. Each is lighter than the one before, so that the order
// can be seen without telling colours apart.

const STOPS = [
  [0.0, 38, 27, 84],
  [0.2, 84, 31, 130],
  [0.4, 148, 44, 138],
  [0.58, 208, 67, 112],
  [0.75, 243, 119, 84],
  [0.9, 252, 189, 108],
  [1.0, 255, 250, 205],
];
export const NEVER = [13, 14, 22];
const SHADES = 256;

// RGB of 256 shades, after one another.
export const PALETTE = new Uint8Array(SHADES * 3);
for (let shade = 0; shade < SHADES; shade++) {
  const at = shade / (SHADES - 1);
  const upper = Math.max(1, STOPS.findIndex((stop) => stop[0] >= at));
  const [below, above] = [STOPS[upper - 1], STOPS[upper]];
  const part = (at - below[0]) / (above[0] - below[0]);
  for (let channel = 0; channel < 3; channel++) {
    PALETTE[shade * 3 + channel] = Math.round(below[channel + 1] + part * (above[channel + 1] - below[channel + 1]));
  }
}
