
// Data of the component browser; the packed block is made by apd_jax/report/browser.py.

function decode(packed) {
  const bytes = Uint8Array.from(atob(packed.data), (character) => character.charCodeAt(0));
  const kinds = { int8: Int8Array, uint8: Uint8Array, int16: Int16Array, float32: Float32Array };
  return new kinds[packed.dtype](bytes.buffer);
}

function percent(share) {
  if (share > 0 && share < 0.0001) return "<0.01%";
  return `${+(100 * share).toPrecision(3)}%`;
}

// Reads one site's matrices out of the packed data, a component at a time.
class Site {
  constructor(data) {
    Object.assign(this, { name: data.name, rows: data.rows, columns: data.columns, form: data.form, viewed: data.viewed });
    [this.height, this.width] = data.shape;
    this.size = this.height * this.width;
    this.values = decode(data.singular_values);
    this.rank = data.singular_values.shape[1];
    const scale = decode(data.target.scale)[0];
    this.target = Float32Array.from(decode(data.target), (integer) => integer * scale);
    if (data.form === "whole") {
      this.weights = decode(data.weights);
      this.scales = decode(data.weights.scale);
    } else {
      this.left = decode(data.left);
      this.leftScales = decode(data.left.scale);
      this.right = decode(data.right);
      this.rightScales = decode(data.right.scale);
      this.kept = data.left.shape[1];
      this.explained = decode(data.explained);
    }
  }

  singularValues(component) {
    return this.values.subarray(component * this.rank, (component + 1) * this.rank);
  }

  squaredNorm(component) {
    return this.singularValues(component).reduce((sum, value) => sum + value * value, 0);
  }

  matrix(component) {
    const out = new Float32Array(this.size);
    if (this.form === "whole") {
      const scale = this.scales[component];
      for (let i = 0; i < this.size; i++) out[i] = this.weights[component * this.size + i] * scale;
      return out;
    }
    for (let r = component * this.kept; r < (component + 1) * this.kept; r++) {
      const scale = this.leftScales[r] * this.rightScales[r];
      for (let i = 0; i < this.height; i++) {
        const factor = this.left[r * this.height + i] * scale;
        if (factor === 0) continue;
        for (let j = 0; j < this.width; j++) out[i * this.width + j] += factor * this.right[r * this.width + j];
      }
    }
    return out;
  }
}

