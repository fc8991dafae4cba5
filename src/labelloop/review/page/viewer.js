// The image with its label, and the brush: what the page needs of NiiVue, and what NiiVue does not do.
// The server sends volumes upright (left to right, posterior to anterior, inferior to superior), so NiiVue's drawing
// has the order of the file's voxels: what is drawn is saved as it is, behind the header that came with the label map.

const HEADER = 352; // bytes before the voxels of the files that the server sends
const CROSSHAIR = 0.3; // percent of the width of the image
const OUTLINE = 2; // pixels
const FILL = 0.16; // how much of the image the class that is asked about covers
const FAINT = 0.55; // how bright the outlines of other classes are, and how much of FILL they cover
const PLANES = ["axial", "coronal", "sagittal"];
const AXES = [2, 1, 0]; // the axis of the voxels that each plane is stacked along
const GRADIENTS = [33990, 33992]; // texture units of NiiVue's gradient

/** Return the red, green and blue of a color, lightened where it would be lost on black. */
export function onBlack(color) {
  const parts = [1, 3, 5].map((start) => parseInt(color.slice(start, start + 2), 16));
  const light = (0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]) / 255;
  const white = light < 0.2 ? 0.45 : 0;
  return parts.map((part) => Math.round(part + white * (255 - part)));
}

/** Say whether this browser can show volumes. */
export function canShow() {
  return Boolean(window.niivue && document.createElement("canvas").getContext("webgl2"));
}

/** NiiVue with a round brush in mm that leaves locked voxels alone, and without what only serves rendering in 3-D. */
function makePen(Niivue) {
  return class extends Niivue {
    // A gradient takes most of the time to load where no GPU helps, and is never shown: one voxel a slice will do.
    rgbaTex(texture, unit, dims, ...rest) {
      return super.rgbaTex(texture, unit, GRADIENTS.includes(unit) ? [3, 1, 1, dims[3]] : dims, ...rest);
    }

    drawPt(x, y, z, value, bitmap = this.drawBitmap) {
      const [, ...size] = this.back.dims.slice(0, 4);
      const middle = [x, y, z];
      const across = [0, 1, 2].filter((axis) => axis !== AXES[Math.max(0, this.drawPenAxCorSag)]);
      const [u, v] = across;
      const radius = this.opts.isFilledPen ? 0 : this.brushMm / 2;
      const reach = across.map((axis) => Math.floor(radius / this.back.pixDims[axis + 1]));
      for (let j = -reach[1]; j <= reach[1]; j++) {
        for (let i = -reach[0]; i <= reach[0]; i++) {
          if (Math.hypot(i * this.back.pixDims[u + 1], j * this.back.pixDims[v + 1]) > radius) continue;
          const at = [...middle];
          at[u] += i;
          at[v] += j;
          if (at.some((place, axis) => place < 0 || place >= size[axis])) continue;
          const voxel = at[0] + size[0] * (at[1] + size[1] * at[2]);
          if (bitmap[voxel] === 0 || bitmap[voxel] === this.drawn) bitmap[voxel] = value;
        }
      }
    }

    drawPenLine(from, to, value) {
      const steps = Math.max(1, ...from.map((place, axis) => Math.abs(place - to[axis])));
      for (let step = 0; step <= steps; step++) {
        this.drawPt(...from.map((place, axis) => Math.round(place + ((to[axis] - place) * step) / steps)), value);
      }
    }

    drawAddUndoBitmap() {} // the viewer keeps the strokes itself
  };
}

export class Viewer {
  /** ring: element that shows how large the brush is. told(text): called with where the crosshair is, in words. stroke(): called after each change of the drawing. */
  constructor(canvas, ring, told, stroke) {
    const { SHOW_RENDER, SLICE_TYPE, DRAG_MODE } = window.niivue;
    this.canvas = canvas;
    this.stroke = stroke;
    this.plane = 0;
    this.ring = ring;
    this.others = true;
    this.visible = true;
    this.nv = new (makePen(window.niivue.Niivue))({
      backColor: [0, 0, 0, 1],
      crosshairColor: [0.36, 0.76, 0.73, 0.7],
      crosshairWidth: CROSSHAIR,
      crosshairWidthUnit: "percent",
      crosshairGap: 12,
      dragAndDropEnabled: false,
      fontColor: [0.85, 0.88, 0.9, 1],
      fontMinPx: 16,
      isColorbar: false,
      isNearestInterpolation: false,
      isRadiologicalConvention: true,
      logLevel: "error",
      mouseEventConfig: {
        leftButton: { primary: DRAG_MODE.crosshair, withShift: DRAG_MODE.pan, withCtrl: DRAG_MODE.measurement },
        rightButton: DRAG_MODE.windowing,
        centerButton: DRAG_MODE.pan,
      },
      multiplanarShowRender: SHOW_RENDER.NEVER,
      sagittalNoseLeft: true,
      sliceType: SLICE_TYPE.MULTIPLANAR,
      loadingText: "",
    });
    this.nv.onLocationChange = (where) => told(this.words(where));
    for (const event of ["mouseup", "mouseleave", "touchend"]) {
      canvas.addEventListener(event, () => setTimeout(() => this.settle()));
    }
    canvas.addEventListener("mousemove", (event) => this.showRing(event));
    canvas.addEventListener("mouseleave", () => this.showRing(null));
  }

  async open() {
    // NiiVue's outlines are one pixel of the screen thin, which is nothing on a good screen: its shader looks further.
    const shaders = WebGL2RenderingContext.prototype;
    const plain = shaders.shaderSource;
    const wide = (OUTLINE * Math.max(1, devicePixelRatio)).toFixed(1);
    shaders.shaderSource = function (shader, source) {
      return plain.call(this, shader, source.replace(/= dFd([xy])\(texPos\)/g, `= ${wide} * dFd$1(texPos)`));
    };
    try {
      await this.nv.attachToCanvas(this.canvas);
    } finally {
      shaders.shaderSource = plain;
    }
  }

  /** Show an image (bytes of a NIfTI file), a label map and the class that is asked about. */
  async show(image, map, about, classes, asked) {
    const { NVImage } = window.niivue;
    this.edit(null);
    const volume = await NVImage.loadFromUrl({ url: image, name: "image.nii", colormap: "gray" });
    this.nv.closeDrawing();
    this.nv.volumes = [];
    this.nv.addVolume(volume);
    this.nv.createEmptyDrawing();
    this.about = about;
    this.classes = classes;
    this.asked = asked;
    this.nv.drawn = asked.id;
    this.nv.scene.pan2Dxyzmm = [0, 0, 0, 1];
    this.putMap(map);
    this.goTo(about.start);
  }

  /** Show another label map (bytes of a NIfTI file) of the same case. */
  putMap(map) {
    this.header = map.slice(0, HEADER);
    this.before = new Uint8Array(map.slice(HEADER));
    this.strokes = [];
    this.nv.drawBitmap = this.before.slice();
    this.paint();
  }

  /** Color the drawing: the class that is asked about, the others faint or not at all. */
  paint() {
    const lut = { R: [0], G: [0], B: [0], A: [0], I: [0], labels: [""] };
    for (const one of [...this.classes, { id: 255, name: "ignored", color: "#ffffff" }]) {
      const mine = one.id === this.asked.id;
      const share = mine ? 1 : FAINT;
      const shown = this.visible && (mine || this.others);
      onBlack(one.color).forEach((part, i) => lut["RGB"[i]].push(Math.round(share * part)));
      lut.A.push(shown ? Math.round(share * share * 255) : 0);
      lut.I.push(one.id);
      lut.labels.push(one.name);
    }
    this.nv.drawLut = window.niivue.cmapper.makeDrawLut(lut);
    this.nv.drawOpacity = this.visible ? FILL : 0;
    this.nv.refreshColormaps();
    this.nv.drawRimOpacity = this.visible ? 1 : -1;
    this.nv.refreshDrawing(true);
  }

  setWindow(low, high) {
    const [volume] = this.nv.volumes;
    if (volume.cal_min === low && volume.cal_max === high) return;
    volume.cal_min = low;
    volume.cal_max = high;
    this.nv.updateGLVolume();
  }

  setPlane(plane) {
    this.plane = plane;
    const [second, third] = [0, 1, 2].filter((other) => other !== plane);
    this.nv.setCustomLayout([
      { sliceType: plane, position: [0, 0, 0.638, 1] },
      { sliceType: second, position: [0.642, 0, 0.358, 0.497] },
      { sliceType: third, position: [0.642, 0.503, 0.358, 0.497] },
    ]);
  }

  goTo(voxel) {
    this.nv.scene.crosshairPos = this.nv.vox2frac(voxel);
    this.nv.createOnLocationChange();
    this.nv.drawScene();
  }

  step(slices) {
    const axis = AXES[this.plane];
    const by = [0, 0, 0];
    by[axis] = slices;
    this.nv.moveCrosshairInVox(...by);
  }

  zoom(factor) {
    const pan = this.nv.scene.pan2Dxyzmm;
    const middle = this.nv.frac2mm(this.nv.scene.crosshairPos);
    const zoom = Math.min(12, Math.max(1, pan[3] * factor));
    this.nv.scene.pan2Dxyzmm = [...[0, 1, 2].map((axis) => (zoom === 1 ? 0 : -middle[axis])), zoom];
    this.nv.drawScene();
  }

  words(where) {
    if (!this.about) return "";
    const voxel = where.vox.map(Math.round);
    const axis = AXES[this.plane];
    const [x, y] = this.about.size;
    const id = this.nv.drawBitmap?.[voxel[0] + x * (voxel[1] + y * voxel[2])];
    const name = this.classes.find((one) => one.id === id)?.plain;
    const value = where.values[0]?.value;
    const parts = [`${PLANES[this.plane]} ${voxel[axis] + 1} of ${this.about.size[axis]}`];
    if (Number.isFinite(value)) parts.push(`${Number.isInteger(value) || Math.abs(value) >= 100 ? Math.round(value) : value.toPrecision(3)}${this.about.modality === "CT" ? " HU" : ""}`);
    if (name) parts.push(name);
    return parts.join("  ·  ");
  }

  // ---- editing ----

  /** Take up a tool: brush, eraser, outline or cut; null: none. */
  edit(tool) {
    this.tool = tool;
    const draws = Boolean(tool);
    this.nv.opts.drawingEnabled = draws;
    if (draws) {
      const adds = tool === "brush" || tool === "outline";
      this.nv.setPenValue(adds ? this.asked.id : 0, tool === "outline" || tool === "cut");
    }
    this.nv.opts.crosshairWidth = draws ? 0 : CROSSHAIR; // it would hide what is drawn
    this.canvas.style.cursor = tool === "brush" || tool === "eraser" ? "none" : draws ? "crosshair" : "default";
    this.showRing(null);
    this.nv.drawScene();
  }

  /** Show how large the brush is, where the mouse is. */
  showRing(event) {
    const tile = event ? this.nv.screenSlices[this.nv.tileIndex(event.offsetX * devicePixelRatio, event.offsetY * devicePixelRatio)] : null;
    const round = this.tool === "brush" || this.tool === "eraser";
    this.ring.hidden = !(tile && round);
    if (this.ring.hidden) return;
    const side = Math.max(3, (this.nv.brushMm * tile.leftTopWidthHeight[2]) / Math.abs(tile.fovMM[0]) / devicePixelRatio);
    this.ring.style.width = this.ring.style.height = `${side}px`;
    this.ring.style.left = `${event.offsetX - side / 2}px`;
    this.ring.style.top = `${event.offsetY - side / 2}px`;
  }

  set brush(mm) {
    this.nv.brushMm = mm;
  }

  /** Keep what was just drawn, but for voxels of other classes: they are locked. */
  settle() {
    const now = this.nv.drawBitmap;
    if (!this.tool || !now) return;
    const changed = [];
    let locked = false;
    for (let at = 0; at < now.length; at++) {
      if (now[at] === this.before[at]) continue;
      if (this.before[at] === 0 || this.before[at] === this.asked.id) changed.push(at);
      else {
        now[at] = this.before[at];
        locked = true;
      }
    }
    if (changed.length) {
      this.strokes.push({ at: Uint32Array.from(changed), was: Uint8Array.from(changed, (at) => this.before[at]) });
      for (const at of changed) this.before[at] = now[at];
    }
    if (changed.length || locked) this.nv.refreshDrawing(true);
    if (changed.length) this.stroke();
  }

  undo() {
    const last = this.strokes.pop();
    if (!last) return;
    last.at.forEach((at, i) => {
      this.before[at] = this.nv.drawBitmap[at] = last.was[i];
    });
    this.nv.refreshDrawing(true);
    this.stroke();
  }

  /** Fill the empty slices between those that have the class, in the large plane; return how many gaps there were. */
  interpolate() {
    const whole = this.nv.drawBitmap;
    const mask = whole.map((id) => (id === this.asked.id ? 1 : 0));
    const gaps = this.gaps(mask);
    this.nv.drawBitmap = mask;
    try {
      // between the ends of one gap: left to itself, NiiVue blends the first and the last slice over all between them
      const options = { sliceType: this.plane, useIntensityGuided: false, binaryThreshold: 0.5 };
      for (const [low, high] of gaps) this.nv.interpolateMaskSlices(low, high, options);
    } finally {
      this.nv.drawBitmap = whole;
    }
    for (let at = 0; at < whole.length; at++) {
      if (mask[at] && whole[at] === 0) whole[at] = this.asked.id;
    }
    this.settle();
    this.nv.refreshDrawing(true);
    return gaps.length;
  }

  /** Return pairs of slices of the large plane that have voxels of a mask, where those between them have none. */
  gaps(mask) {
    const axis = AXES[this.plane];
    const size = this.nv.back.dims.slice(1, 4);
    const stride = size.slice(0, axis).reduce((product, side) => product * side, 1);
    const has = new Array(size[axis]).fill(false);
    for (let at = 0; at < mask.length; at++) if (mask[at]) has[Math.floor(at / stride) % size[axis]] = true;
    const drawn = [...has.keys()].filter((slice) => has[slice]);
    return drawn.slice(1).map((slice, i) => [drawn[i], slice]).filter(([low, high]) => high - low > 1);
  }

  /** Take the class from another label map, where no other class is in its way. */
  takeFrom(map) {
    const theirs = new Uint8Array(map.slice(HEADER));
    const mine = this.nv.drawBitmap;
    for (let at = 0; at < mine.length; at++) {
      if (theirs[at] === this.asked.id && mine[at] === 0) mine[at] = this.asked.id;
      else if (theirs[at] !== this.asked.id && mine[at] === this.asked.id) mine[at] = 0;
    }
    this.settle();
  }

  /** Return the label map as it is now: bytes of a gzipped NIfTI file. */
  async file() {
    const parts = new Blob([this.header, this.before]);
    return new Response(parts.stream().pipeThrough(new CompressionStream("gzip"))).blob();
  }
}
