"use strict";
// Three views of one crystal, turned together; buttons choose the crystal.
(() => {
  const data = JSON.parse(document.getElementById("crystal-data").textContent);
  const kinds = ["true", "input", "answer"];
  const viewers = kinds.map((kind) => {
    const box = document.getElementById("crystal-" + kind);
    try {
      return $3Dmol.createViewer(box, { backgroundColor: getComputedStyle(box).backgroundColor, antialias: true });
    } catch {
      box.textContent = "This browser draws no WebGL.";
      return null;
    }
  });
  viewers.forEach((one) => viewers.forEach((other) => {
    if (one && other && one !== other) one.linkViewer(other);
  }));
  const point = ([x, y, z]) => ({ x, y, z });
  const draw = (viewer, view, fresh) => {
    viewer.removeAllModels();
    viewer.removeAllShapes();
    const model = viewer.addModel();
    model.addAtoms(view.atoms.map(([elem, x, y, z], serial) => ({ elem, x, y, z, serial, bonds: [], bondOrder: [] })));
    viewer.setStyle({}, { sphere: { scale: 0.28, colorscheme: "Jmol" } });
    view.edges.forEach(([a, b]) => viewer.addCylinder({
      start: point(a), end: point(b), radius: 0.03, color: "#8892a4", fromCap: 1, toCap: 1,
    }));
    if (fresh) viewer.zoomTo();
    viewer.render();
  };
  const buttons = [...document.querySelectorAll("#crystals button")];
  const show = (number) => {
    buttons.forEach((button, i) => button.setAttribute("aria-pressed", String(i === number)));
    kinds.forEach((kind, i) => {
      document.getElementById("cell-" + kind).textContent = data[number].views[i].cell;
      if (viewers[i]) draw(viewers[i], data[number].views[i], true);
    });
  };
  buttons.forEach((button, i) => button.addEventListener("click", () => show(i)));
  show(0);
})();
