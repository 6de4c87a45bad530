// The prompt that is being built: a list of parts, each a card. `props.value` is what Python gets of it.
const COLORS = 8;
const list = element.querySelector(".parts"), faults = element.querySelector(".faults");
const drop = element.querySelector(".drop"), chooser = element.querySelector("input[type=file]");
let parts = [], dragged = null;

function make(tag, className, text = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

function button(className, text, label, act) {
  const made = make("button", className, text);
  made.type = "button";
  made.title = label;
  made.setAttribute("aria-label", label);
  made.addEventListener("click", act);
  return made;
}

function tell() {
  props.value = parts.filter(part => !part.reading)
    .map(({ path, area, ends }) => ({ path, text: area.value, ends }));
}

function fit(area) {
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight + 2}px`;  // with its border
}

function complain(message) {
  const fault = make("p", "fault", message);
  fault.append(button("plain close", "\u00d7", "Dismiss", () => fault.remove()));
  faults.append(fault);
}

function move(part, place) {
  if (place < 0 || place >= parts.length || !parts.includes(part)) return;  // it may fail while it is dragged
  parts.splice(parts.indexOf(part), 1);
  parts.splice(place, 0, part);
  arrange();
}

function remove(part) {
  const place = parts.indexOf(part);
  parts.splice(place, 1);
  part.card.remove();
  arrange();
  (parts[Math.min(place, parts.length - 1)]?.area ?? chooser).focus();
}

function add(path) {
  const part = { path, ends: true, reading: Boolean(path) };
  const card = part.card = make("li", "part");
  part.figure = make("figure", "medium");
  part.area = make("textarea", "words");
  part.area.rows = 1;
  part.area.maxLength = 20000;
  part.area.addEventListener("input", () => { fit(part.area); tell(); });
  part.area.addEventListener("keydown", event => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) trigger("submit");
  });
  part.toggle = button("chip eoc", "<EOC>", "", () => { part.ends = !part.ends; arrange(); });
  part.up = button("plain", "\u2191", "Move up", () => { move(part, parts.indexOf(part) - 1); part.up.focus(); });
  part.down = button("plain", "\u2193", "Move down", () => { move(part, parts.indexOf(part) + 1); part.down.focus(); });
  const grip = make("span", "grip", "\u2807");
  grip.draggable = true;
  grip.title = "Drag to reorder";
  grip.addEventListener("dragstart", event => {
    dragged = part;
    card.classList.add("dragged");
    event.dataTransfer.effectAllowed = "move";
    event.dataTransfer.setDragImage(card, 10, 10);
  });
  grip.addEventListener("dragend", () => { dragged = null; card.classList.remove("dragged"); });
  card.addEventListener("dragover", () => {
    if (dragged && dragged !== part) move(dragged, parts.indexOf(part));
  });
  const tools = make("div", "tools"), body = make("div", "body");
  part.role = make("span", "role");
  tools.append(part.role, part.toggle, part.up, part.down, button("plain", "\u00d7", "Remove", () => remove(part)));
  body.append(part.area, tools);
  card.append(grip, part.figure, body);
  parts.push(part);
  arrange();
  return part;
}

function arrange() {
  let slot = 0;
  parts.forEach((part, place) => {
    const { card, figure, area, toggle } = part, last = place === parts.length - 1;
    if (list.children[place] !== card) list.insertBefore(card, list.children[place] ?? null);
    card.classList.remove(...[...card.classList].filter(name => /^m\d$/.test(name)));
    figure.hidden = part.path === "";
    delete card.dataset.slot;
    if (part.path !== "") {
      card.classList.add(`m${slot % COLORS}`);
      card.dataset.slot = slot;
      figure.dataset.number = slot++;
    }
    part.role.textContent = last ? "The model writes on here" : "";
    card.classList.toggle("last", last);
    area.placeholder = last ? "Text before what the model writes, such as Output:" : "Text, such as Output: a red wall";
    area.setAttribute("aria-label", `Text of part ${place + 1}`);
    toggle.hidden = last;
    toggle.classList.toggle("off", !part.ends);
    toggle.setAttribute("aria-pressed", part.ends);
    toggle.title = part.ends ? "The example ends here. Click to let the next part belong to it."
      : "The next part belongs to this example. Click to end it here.";
    part.up.disabled = place === 0;
    part.down.disabled = last;
    fit(area);
  });
  element.querySelector(".editor").classList.toggle("filled", parts.length > 0);
  element.querySelector(".editor").classList.toggle("several", parts.length > 1);
  tell();
}

function show(part, seen) {
  const strip = make("div", "frames");
  for (const source of seen.frames) {
    const image = make("img", "");
    image.src = source;
    image.alt = seen.frames.length > 1 ? `a frame of ${seen.name}` : seen.name;
    strip.append(image);
  }
  part.figure.replaceChildren(strip, make("figcaption", "", seen.name));
  part.figure.title = seen.name;
  part.card.classList.toggle("film", seen.frames.length > 1);
}

async function receive(file) {
  if (file.size > props.most_bytes) {
    const size = Math.ceil(file.size / 2 ** 20), most = props.most_bytes / 2 ** 20;
    return complain(`${file.name}: has ${size} MiB; at most ${most} are read. Make it smaller.`);
  }
  const part = add(file.name);
  part.card.classList.add("reading");
  try {
    const { path } = await upload(file);
    const seen = await server.look(path);
    if (!parts.includes(part)) return;
    if (seen.fault) throw new Error(seen.fault);
    Object.assign(part, { path, reading: false });
    part.card.classList.remove("reading");
    show(part, seen);
    arrange();
  } catch (error) {
    if (!parts.includes(part)) return;  // its card was removed meanwhile
    parts.splice(parts.indexOf(part), 1);
    part.card.remove();
    arrange();
    complain(error.message?.startsWith(file.name) ? error.message : `${file.name}: could not be sent. Try again.`);
  }
}

function receiveAll(files) {
  faults.replaceChildren();
  for (const file of files) receive(file);
}

chooser.addEventListener("change", () => { receiveAll([...chooser.files]); chooser.value = ""; });
element.querySelector(".add").addEventListener("click", () => add("").area.focus());
element.querySelector(".clear").addEventListener("click", () => {
  parts = [];
  list.replaceChildren();
  faults.replaceChildren();
  arrange();
});
new ResizeObserver(() => parts.forEach(part => fit(part.area))).observe(list);
document.addEventListener("pointerover", event => {  // a picture and the words that see it stand out together
  const slot = event.target.closest("[data-slot]")?.dataset.slot ?? "-1";
  for (const part of document.querySelectorAll("[data-slot]")) {
    part.classList.toggle("lit", slot !== "-1" && part.dataset.slot === slot);
  }
});
element.addEventListener("dragover", event => {
  event.preventDefault();
  drop.classList.toggle("over", !dragged);
});
element.addEventListener("dragleave", () => drop.classList.remove("over"));
element.addEventListener("drop", event => {
  event.preventDefault();
  drop.classList.remove("over");
  if (!dragged) receiveAll([...event.dataTransfer.files]);
});
