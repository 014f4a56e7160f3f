// Elements from a tag, attributes and children. Text goes in as text: nothing that the service tells becomes markup.

export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value != null) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child != null));
  return made;
}

// Put a text where it is, if it is another one: what has not changed is not read out again.
export function say(place, text) {
  if (place.textContent !== text) place.textContent = text;
}

// A canvas as sharp as the screen; its context draws in CSS pixels.
export function sharpContext(canvas) {
  const { width, height } = canvas.getBoundingClientRect();
  const ratio = window.devicePixelRatio || 1;
  const [across, down] = [Math.round(width * ratio), Math.round(height * ratio)];
  if (canvas.width !== across || canvas.height !== down) Object.assign(canvas, { width: across, height: down });
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  return { context, width, height };
}

export function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

// Call `draw` again when the light changes; returns how to end that.
export function onLight(draw) {
  const light = matchMedia("(prefers-color-scheme: dark)");
  light.addEventListener("change", draw);
  return () => light.removeEventListener("change", draw);
}
