"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const AXES = ["#d55e00", "#009e73", "#0072b2"];
  const RAMP = data.ramp; // weight colours, from none to the heaviest
  const UNIT = 1e5; // weights are whole numbers of 0.00001
  const byId = (id) => document.getElementById(id);
  const percent = (share) => share > 0 && share < 0.0005 ? "<0.1 %" : (100 * share).toFixed(1) + " %";
  const state = { atom: 0, layer: data.layer, head: 0, frame: 0, picked: -1 };
  let viewer = null, drawnAtom = -1;

  function element(tag, text, parent, className) {
    const made = document.createElement(tag);
    if (text !== undefined && text !== null) made.textContent = text; // never as markup
    if (className) made.className = className;
    if (parent) parent.appendChild(made);
    return made;
  }

  const atom = () => data.atoms[state.atom];
  const weights = () => atom().weights[state.layer][state.head].map((w) => w / UNIT);
  const focus = () => atom().focus[state.layer][state.head]; // [shell, pointed, shape] or null
  const frames = () => atom().sets[atom().set[state.layer][state.head]];
  const shares = () => atom().shares[state.layer][state.head];

  function ramp(share) {
    return RAMP[Math.round(Math.max(0, Math.min(1, share)) * (RAMP.length - 1))];
  }
  function bright(hex) {
    const n = parseInt(hex.slice(1), 16);
    return 0.3 * (n >> 16) + 0.59 * ((n >> 8) & 255) + 0.11 * (n & 255) > 140;
  }
  const tint = (symbol) => {
    const known = window.$3Dmol && $3Dmol.elementColors.Jmol[symbol];
    return "#" + (known === undefined ? 0xff1493 : known).toString(16).padStart(6, "0");
  };

  // ---------------------------------------------------------------- controls

  function atomButtons() {
    data.atoms.forEach((a, number) => {
      const button = element("button", a.element + " " + a.site, byId("atoms"));
      button.onclick = () => choose({ atom: number });
    });
  }

  function grid() {
    const table = byId("grid");
    table.replaceChildren();
    const top = element("tr", null, element("thead", null, table));
    element("th", "head", top);
    for (let h = 0; h < data.heads; h++) element("th", String(h + 1), top);
    const body = element("tbody", null, table);
    for (let layer = 0; layer < data.layers; layer++) {
      const row = element("tr", null, body);
      element("th", "layer " + data.layerNumbers[layer], row);
      for (let head = 0; head < data.heads; head++) {
        const looked = atom().focus[layer][head];
        const share = looked ? atom().shares[layer][head][looked[0]] : 0;
        const button = element("button", Math.round(100 * share), element("td", null, row));
        button.style.background = ramp(0.08 + 0.87 * share);
        button.style.color = bright(ramp(0.08 + 0.87 * share)) ? "#1d232b" : "#ffffff";
        button.setAttribute("aria-pressed", String(layer === state.layer && head === state.head));
        button.title = "layer " + data.layerNumbers[layer] + ", head " + (head + 1) +
          (looked ? ": " + percent(share) + " on " + atom().shells[looked[0]] : "");
        button.onclick = () => choose({ layer, head });
      }
    }
    byId("grid-note").textContent = data.framed
      ? "Per cent on the neighbours that the head's frames point at; choose a cell."
      : "Per cent on the shell of neighbours that the head attends to most; choose a cell.";
  }

  function lists() {
    const w = weights(), a = atom(), looked = focus(), sums = shares();
    byId("chosen").textContent = a.element + " " + a.site + ", layer " + data.layerNumbers[state.layer] + ", head " + (state.head + 1);
    const table = byId("shells");
    table.replaceChildren();
    const body = element("tbody", null, table);
    a.shells.map((name, shell) => [shell, name, sums[shell]])
      .filter(([shell, , share]) => share >= 0.005 || shell === 0 || (looked && shell === looked[0]))
      .sort((x, y) => y[2] - x[2])
      .forEach(([shell, name, share]) => {
        const mine = looked && shell === looked[0];
        const row = element("tr", null, body, mine ? "looked" : "");
        element("td", mine && looked[2] ? name + ", " + looked[2] : name, row);
        element("td", percent(share), row, "n");
        element("div", null, element("td", null, row, "bar")).style.width = 100 * share + "%";
      });
    const images = byId("images");
    images.replaceChildren();
    const head = element("tr", null, element("thead", null, images));
    for (const [name, kind] of [["atom", ""], ["image", ""], ["distance / Å", "n"], ["weight", "n"]]) element("th", name, head, kind);
    const rows = element("tbody", null, images);
    w.map((weight, image) => [image, weight]).sort((x, y) => y[1] - x[1]).slice(0, 16).forEach(([image, weight]) => {
      const row = element("tr", null, rows);
      element("td", image === 0 ? "self" : a.symbols[image] + " " + a.sites[image], row);
      element("td", image === 0 ? "" : a.images[image].join(" "), row);
      element("td", a.distances[image].toFixed(3), row, "n");
      element("td", percent(weight), row, "n");
      row.onmouseenter = () => pick(image);
      row.onmouseleave = () => pick(-1);
    });
    const least = lowest();
    const shown = w.reduce((sum, weight, image) => sum + (image === 0 || weight >= least ? weight : 0), 0);
    byId("least-shown").textContent = percent(least);
    byId("left-out").textContent = "Shown: " + percent(shown) + " of the attention; " + percent(Math.max(0, 1 - shown)) +
      " is on images below this weight or, below " + percent(data.least) + " in every head, not in this page but in the table of all weights.";
  }

  function frameTools() {
    const count = frames().length;
    byId("frames-row").style.display = data.framed ? "" : "none";
    byId("frame").textContent = count ? (state.frame + 1) + " of " + count : "none";
    byId("previous").disabled = byId("next").disabled = count < 2;
  }

  function choose(change) {
    Object.assign(state, change);
    if ("atom" in change && !("head" in change)) state.head = atom().telling[state.layer];
    if (!("frame" in change)) state.frame = 0;
    [...byId("atoms").children].forEach((b, n) => b.setAttribute("aria-pressed", String(n === state.atom)));
    grid();
    lists();
    frameTools();
    draw();
    legend();
    try {
      history.replaceState(null, "", "#" + [atom().site, data.layerNumbers[state.layer], state.head + 1].join("."));
    } catch (_) { /* some browsers keep the address of local files */ }
  }

  const lowest = () => Math.max(data.least, Math.pow(10, Number(byId("least").value)));

  // ---------------------------------------------------------------- the scene

  const point = (v, f = 1) => ({ x: f * v[0], y: f * v[1], z: f * v[2] });

  function draw() {
    if (!viewer) return;
    const a = atom(), w = weights(), looked = focus(), least = lowest();
    const most = Math.max(...w.slice(1), 1e-9);
    const members = looked ? a.members[looked[0]] : [];
    const inside = new Set(members);
    const bond = members.length ? members.reduce((sum, i) => sum + a.distances[i], 0) / members.length : 2;
    const size = 0.115 * bond;
    viewer.removeAllModels();
    viewer.removeAllShapes();
    viewer.removeAllLabels();
    const model = viewer.addModel();
    const balls = [];
    w.forEach((weight, image) => {
      if (image !== 0 && weight < least && !inside.has(image)) return;
      balls.push({ elem: a.symbols[image], serial: image, ...point(a.positions[image]), bonds: [], bondOrder: [] });
    });
    model.addAtoms(balls);
    const byWeight = byId("colour").value === "weight";
    balls.forEach((ball) => {
      const image = ball.serial;
      const color = image === 0 && byWeight ? "#ffffff" : byWeight ? ramp(0.1 + 0.75 * w[image] / most) : tint(ball.elem);
      const radius = image === 0 ? 1.15 * size : size * (0.6 + 0.75 * Math.sqrt(w[image] / most));
      model.setStyle({ serial: image }, { sphere: { color, radius: image === state.picked ? 1.35 * radius : radius } });
      if (byId("symbols").checked) {
        viewer.addLabel(ball.elem, {
          position: point(a.positions[image]), fontSize: 12, showBackground: false, alignment: "center", inFront: true,
          fontColor: bright(color) ? "#1d232b" : "#ffffff",
        });
      }
    });
    members.forEach((image) => viewer.addCylinder({
      start: point([0, 0, 0]), end: point(a.positions[image]), color: "#5b6577",
      radius: size * (0.06 + 0.12 * w[image] / most), fromCap: 0, toCap: 0,
    }));
    const hull = looked && byId("polyhedron").checked ? a.hulls[looked[0]] : null;
    if (hull) polyhedron(a, hull);
    arrows(bond, size);
    model.setHoverable({}, true, hover, unhover);
    if (drawnAtom !== state.atom) {
      viewer.zoomTo({}, 0);
      if (drawnAtom === -1) { // c upwards
        viewer.rotate(-74, "x");
        viewer.rotate(-114, "z");
      }
      viewer.zoom(0.95);
      drawnAtom = state.atom;
    }
    viewer.render();
  }

  function polyhedron(a, hull) {
    const vertexArr = [], normalArr = [], faceArr = [];
    hull.faces.forEach((face) => {
      const [p, q, r] = face.map((i) => a.positions[i]);
      const u = q.map((x, k) => x - p[k]), v = r.map((x, k) => x - p[k]);
      const n = [u[1] * v[2] - u[2] * v[1], u[2] * v[0] - u[0] * v[2], u[0] * v[1] - u[1] * v[0]];
      const length = Math.hypot(...n) || 1;
      [p, q, r].forEach((corner) => {
        faceArr.push(vertexArr.length);
        vertexArr.push(point(corner));
        normalArr.push(point(n, 1 / length));
      });
    });
    viewer.addCustom({ vertexArr, normalArr, faceArr, color: "#8f9fc4", opacity: 0.32 });
    hull.edges.forEach(([i, j]) => viewer.addCylinder({
      start: point(a.positions[i]), end: point(a.positions[j]), radius: 0.018, color: "#56627d", fromCap: 0, toCap: 0,
    }));
  }

  function arrows(bond, size) {
    const all = frames();
    if (!all.length) return;
    const arrow = (tip, color, radius, length) => viewer.addArrow({
      start: point(tip, 1.1 * size), end: point(tip, length), radius, radiusRatio: 2.2, mid: 0.78, color,
    });
    if (byId("all-frames").checked) {
      const seen = new Set();
      all.forEach((frame) => {
        const key = frame.slice(0, 3).join(" ");
        if (seen.has(key)) return;
        seen.add(key);
        if (Math.hypot(...frame.slice(0, 3)) > 0.5) arrow(frame.slice(0, 3), "#f0a878", 0.024 * bond, 0.7 * bond);
      });
    }
    const chosen = all[Math.min(state.frame, all.length - 1)];
    for (let k = 0; k < 3; k++) {
      const tip = chosen.slice(3 * k, 3 * k + 3);
      if (Math.hypot(...tip) < 0.5) continue; // this axis is not defined
      arrow(tip, AXES[k], 0.045 * bond, 0.8 * bond);
      viewer.addLabel("e" + "₁₂₃"[k], {
        position: point(tip, 1.24 * bond), fontSize: 15, fontColor: AXES[k], backgroundColor: "#ffffff", backgroundOpacity: 0.75,
        alignment: "center", inFront: true,
      });
    }
  }

  let bubble = null;
  function hover(ball) {
    unhover();
    const a = atom(), image = ball.serial;
    const name = image === 0 ? "self" : a.symbols[image] + " " + a.sites[image] + ", " + a.distances[image].toFixed(3) + " Å";
    bubble = viewer.addLabel(name + ", " + percent(weights()[image]), {
      position: point(a.positions[image]), fontSize: 14, backgroundColor: "#1d232b", backgroundOpacity: 0.9, fontColor: "#ffffff",
      alignment: "bottomCenter", inFront: true,
    });
    viewer.render();
  }
  function unhover() {
    if (bubble) viewer.removeLabel(bubble);
    bubble = null;
    viewer.render();
  }
  function pick(image) {
    state.picked = image;
    draw();
    if (image >= 0 && viewer && weights()[image] >= lowest()) hover({ serial: image });
  }

  function legend() {
    const box = byId("legend");
    box.replaceChildren();
    const entry = (className, color, text) => {
      const item = element("span", null, box);
      const mark = element("i", null, item, className);
      if (color) mark.style.background = color;
      element("span", text, item);
    };
    if (data.framed) AXES.forEach((color, k) => entry("", color, "e" + "₁₂₃"[k]));
    if (data.framed) entry("", "#f0a878", "e₁ of other tied frames");
    if (byId("colour").value === "weight") {
      const most = Math.max(...weights().slice(1), 0);
      entry("ramp", "linear-gradient(90deg, " + RAMP.join(", ") + ")", "weight of an image, 0 to " + percent(most));
    } else {
      [...new Set(atom().symbols)].forEach((symbol) => entry("ball", tint(symbol), symbol));
    }
  }

  function start() {
    atomButtons();
    const wanted = location.hash.slice(1).split(".").map(Number);
    const known = data.atoms.findIndex((a) => a.site === wanted[0]);
    if (known >= 0) state.atom = known;
    if (data.layerNumbers.includes(wanted[1])) state.layer = data.layerNumbers.indexOf(wanted[1]);
    state.head = data.head === null ? atom().telling[state.layer] : data.head;
    if (wanted[2] >= 1 && wanted[2] <= data.heads) state.head = wanted[2] - 1;
    try {
      const box = byId("viewer");
      viewer = $3Dmol.createViewer(box, { backgroundColor: getComputedStyle(box).backgroundColor, antialias: true });
    } catch (_) {
      viewer = null;
    }
    if (!viewer) byId("hint").textContent = "This browser draws no WebGL; the numbers are beside it.";
    byId("previous").onclick = () => choose({ frame: (state.frame + frames().length - 1) % frames().length });
    byId("next").onclick = () => choose({ frame: (state.frame + 1) % frames().length });
    byId("all-frames").onchange = byId("polyhedron").onchange = byId("symbols").onchange = draw;
    byId("colour").onchange = () => { draw(); legend(); };
    byId("least").oninput = () => { lists(); draw(); };
    choose({ head: state.head, layer: state.layer });
  }
  start();
})();
