// Decides whether a microphone hears a voice, from the level of its sound.

const HYSTERESIS = 6; // dB: a voice that is heard may fall so far below the threshold

/** Opens when the sound has been above a threshold for a while, closes when it has been well below
 *  it for a while. Levels are in dB of full scale, times in ms. */
export class Gate {
  constructor({ threshold = -45, attack = 40, release = 600 } = {}) {
    Object.assign(this, { threshold, attack, release, open: false });
    this._above = this._below = this._deaf = 0;
  }

  /** Take the level of the next `ms` of sound; `attack` may be longer than usual.
   *  Returns whether a voice is heard. */
  hear(level, ms, attack = this.attack) {
    if (this.open) {
      this._below = level < this.threshold - HYSTERESIS ? this._below + ms : 0;
      if (this._below >= this.release) this.close();
    } else if (this._deaf > 0) {
      this._deaf = level < this.threshold - HYSTERESIS ? this._deaf - ms : this._deaf;
    } else {
      this._above = level >= this.threshold ? this._above + ms : Math.max(0, this._above - ms);
      if (this._above >= attack) {
        this.open = true;
        this._below = 0;
      }
    }
    return this.open;
  }

  /** Close; it opens again only after a pause of `pause` ms. */
  close(pause = 0) {
    this.open = false;
    this._above = this._below = 0;
    this._deaf = pause;
  }
}
