// A picture from the kernel in which a pixel is picked with the mouse or the keys. No part of it is fetched from elsewhere.

const MOVES = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

function clamp(value, count) {
  return Math.max(0, Math.min(count - 1, value));
}

function render({ model, el }) {
  const frame = document.createElement("div");
  const picture = document.createElement("img");
  const spoken = document.createElement("span");
  frame.className = "deeplab-click-image";
  picture.draggable = false;
  spoken.className = "deeplab-spoken";
  spoken.setAttribute("aria-live", "polite");
  frame.append(picture, spoken);
  el.append(frame);
  let address = "";

  function show() {
    URL.revokeObjectURL(address);
    address = URL.createObjectURL(new Blob([model.get("png")], { type: "image/png" }));
    picture.src = address;
  }

  function describe() {
    picture.alt = model.get("alt");
    const pickable = model.get("area").length === 4;
    frame.classList.toggle("pickable", pickable);
    if (!pickable) return;
    const [row, column] = model.get("pixel");
    frame.tabIndex = 0;
    // JupyterLab would take the arrow keys for itself and go to the next cell
    frame.dataset.lmSuppressShortcuts = "true";
    frame.setAttribute("role", "application");
    frame.setAttribute("aria-roledescription", "pixel picker");
    frame.setAttribute("aria-label", `${model.get("alt")}. Arrow keys move by a pixel, with shift by ${model.get("step")}.`);
    spoken.textContent = `row ${row}, column ${column}`;
  }

  function pick(row, column) {
    const [rows, columns] = model.get("extent");
    const next = [clamp(row, rows), clamp(column, columns)];
    if (next.join() === model.get("pixel").join()) return;
    model.set("pixel", next);
    model.save_changes();
  }

  function pickAt(event) {
    const [left, top, width, height] = model.get("area"); // of the picture, as fractions of the whole image
    const [rows, columns] = model.get("extent");
    const box = picture.getBoundingClientRect();
    const across = ((event.clientX - box.left) / box.width - left) / width;
    const down = ((event.clientY - box.top) / box.height - top) / height;
    pick(Math.floor(down * rows), Math.floor(across * columns));
  }

  frame.addEventListener("pointerdown", (event) => {
    if (model.get("area").length !== 4 || event.button !== 0) return;
    frame.setPointerCapture(event.pointerId);
    frame.focus({ preventScroll: true });
    pickAt(event);
    event.preventDefault();
  });
  frame.addEventListener("pointermove", (event) => {
    if (frame.hasPointerCapture(event.pointerId)) pickAt(event);
  });
  frame.addEventListener("keydown", (event) => {
    const move = MOVES[event.key];
    if (!move || model.get("area").length !== 4) return;
    const [row, column] = model.get("pixel");
    const by = event.shiftKey ? model.get("step") : 1;
    pick(row + move[0] * by, column + move[1] * by);
    event.preventDefault();
    event.stopPropagation();
  });

  model.on("change:png", show);
  model.on("change:alt change:pixel change:area change:step", describe);
  show();
  describe();
  return () => URL.revokeObjectURL(address);
}

export default { render };
