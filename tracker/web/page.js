"use strict";

const RETRY_MS = 2000;
const QUIET_SECONDS = 3;
// A line goes on over this many seconds without a frame.
const BRIDGED_SECONDS = 3;
const SHORTEST_SECONDS = 30;
const STATES = { waiting: "Waiting for the first picture", running: "Live", over: "Over", failed: "Broke off" };

const main = document.querySelector("main");
const overall = document.querySelector("#status");
let panels = [];

function connect() {
  const address = new URL("live", location.href);
  address.protocol = address.protocol.replace("http", "ws");
  const socket = new WebSocket(address);
  let over = false;
  let opened = false;
  socket.binaryType = "arraybuffer";
  socket.onmessage = ({ data }) => {
    if (typeof data !== "string") {
      showPicture(socket, data);
      return;
    }
    const message = JSON.parse(data);
    if (!opened) {
      opened = true;
      panels = build(message.panels);
      panels.forEach((_, index) => ask(socket, index));
    }
    over = message.over;
    showCounts(message);
  };
  socket.onclose = () => {
    if (opened && !over) showState(overall, "failed", "Connection lost, trying again");
    setTimeout(connect, RETRY_MS);
  };
}

/** Ask for an input's next picture, once the browser has shown the one before; in a hidden tab that is never. */
function ask(socket, index) {
  requestAnimationFrame(() => {
    if (socket.readyState === WebSocket.OPEN) socket.send(String(index));
  });
}

async function showPicture(socket, data) {
  const index = new DataView(data).getUint16(0);
  try {
    const picture = await createImageBitmap(new Blob([new Uint8Array(data, 2)], { type: "image/jpeg" }));
    panels[index].canvas.getContext("2d").drawImage(picture, 0, 0);
    picture.close();
  } finally {
    ask(socket, index); // after a broken picture, too
  }
}

function build(inputs) {
  const template = document.querySelector("#panel").content;
  main.replaceChildren();
  main.classList.toggle("single", inputs.length === 1);
  document.querySelector("#totals").hidden = inputs.length === 1;
  return inputs.map(({ name, size }) => {
    const root = template.cloneNode(true).firstElementChild;
    main.append(root);
    const find = (selector) => root.querySelector(selector);
    find("h2").textContent = name;
    const canvas = find("canvas");
    [canvas.width, canvas.height] = size;
    canvas.setAttribute("aria-label", `Picture of ${name}`);
    find("button").onclick = () =>
      document.fullscreenElement ? document.exitFullscreen() : find("figure").requestFullscreen();
    return { root, find, canvas, chart: chart(find) };
  });
}

function showCounts({ panels: inputs, over }) {
  inputs.forEach((input, index) => {
    const { root, find, chart } = panels[index];
    showFigures(root, input);
    const quiet = input.state === "running" && input.quiet >= QUIET_SECONDS;
    const state = quiet ? `No picture for ${Math.round(input.quiet)} s` : STATES[input.state];
    showState(find(".state"), quiet ? "quiet" : input.state, state);
    const progress = find("progress");
    progress.hidden = !input.last_frame;
    progress.value = input.last_frame ? input.frame / input.last_frame : 0;
    setText(find(".last"), ["over", "failed"].includes(input.state) ? "the end" : "now");
    chart(input.history);
  });
  const sum = (key) => inputs.reduce((total, input) => total + (input.state === "running" ? input[key] : 0), 0);
  const people = sum("people");
  showFigures(document.querySelector("#totals"), { people, rate: sum("rate") });
  showState(overall, over ? "over" : "running", over ? "The run is over; this was its end" : "Connected");
  document.title = over ? "Over: live tracking" : `${people} ${people === 1 ? "person" : "people"}, live`;
}

function showFigures(root, figures) {
  for (const field of root.querySelectorAll("[data-figure]")) {
    const name = field.dataset.figure;
    const digits = name === "rate" ? 1 : 0;
    const format = { minimumFractionDigits: digits, maximumFractionDigits: digits };
    setText(field, figures[name].toLocaleString("en", format));
    if (name === "frame" && figures.last_frame) {
      const total = document.createElement("small");
      total.textContent = ` / ${figures.last_frame.toLocaleString("en")}`;
      field.append(total);
    }
  }
}

function showState(element, state, text) {
  element.className = `state ${state}`;
  setText(element, text);
}

/** Screen readers speak what changes; nothing is touched that stays. */
function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** What draws the most people at once in each of the last seconds; null where there was no frame. */
function chart(find) {
  const [plot, caption, cursor, dot] = [".plot", ".caption", ".cursor", ".dot"].map(find);
  const title = caption.textContent;
  let history = [];
  let pointed = null; // 0 at the left, 1 at the right

  function point() {
    const last = history.length - 1;
    const index = pointed === null ? -1 : Math.round(pointed * last);
    cursor.hidden = !Number.isInteger(history[index]);
    cursor.style.left = `${(100 * index) / last}%`;
    setText(caption, cursor.hidden ? title : `${title}, ${last - index} s before: ${history[index]}`);
  }

  plot.onpointermove = (event) => {
    const { left, width } = plot.getBoundingClientRect();
    pointed = (event.clientX - left) / width;
    point();
  };
  plot.onpointerleave = () => {
    pointed = null;
    point();
  };

  return (latest) => {
    const missing = Math.max(0, SHORTEST_SECONDS - latest.length);
    history = [...Array(missing).fill(null), ...latest];
    setText(find(".first"), `${history.length} s before`);
    const last = history.length - 1;
    const top = Math.max(2, ...history);
    const pieces = [];
    history.forEach((people, x) => {
      if (people === null) return;
      const piece = pieces.at(-1);
      if (piece && x - piece.at(-1)[0] <= BRIDGED_SECONDS) piece.push([x, 1 - people / top]);
      else pieces.push([[x, 1 - people / top]]);
    });
    find(".plot svg").setAttribute("viewBox", `0 0 ${last} 1`);
    find(".line").setAttribute("d", pieces.map((piece) => `M${piece.join("L")}`).join(""));
    const area = (piece) => `M${piece[0][0]},1L${piece.join("L")}L${piece.at(-1)[0]},1Z`;
    find(".area").setAttribute("d", pieces.map(area).join(""));
    setText(find(".top"), String(top));
    dot.hidden = !pieces.length;
    if (pieces.length) {
      const [x, y] = pieces.at(-1).at(-1);
      dot.style.left = `${(100 * x) / last}%`;
      dot.style.top = `${100 * y}%`;
    }
    point();
  };
}

connect();
