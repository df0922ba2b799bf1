// What the sliders of a plan's page work out: the planner's own formulas over the facts of one plan, see plan_facts.py.
// Beside each function stands the Python that it mirrors; tests/app/test_plan_page.py holds the two together.
"use strict";

// nachim.law.repeat.effective_tokens; `unique` is null where text has no end.
function effectiveTokens(facts, tokens, unique) {
  if (unique === null || tokens <= unique) return tokens;
  return unique * (1 - facts.rStar * Math.expm1(-(tokens / unique - 1) / facts.rStar));
}

// nachim.law.published.Surface.loss
function surfaceLoss(surface, x, tokens) {
  return surface.E + (surface.A * x ** -surface.alpha + surface.B * tokens ** -surface.beta) ** surface.k;
}

// nachim.law.published.Surface.best_x
function bestX(surface, product) {
  const logG = Math.log(surface.alpha * surface.A) - Math.log(surface.beta * surface.B);
  return Math.exp((logG + surface.beta * Math.log(product)) / (surface.alpha + surface.beta));
}

// nachim.law.published.KnownLaw.optimum, and the loss that nachim.budget.plan.Plan.optimum_loss gives it, in which
// repeated tokens count at what they are worth.
function optimum(facts, setting) {
  const { law, lossLaw } = facts;
  const product = setting.flops / law.unit;
  const x = law.place ? law.place.coefficient * setting.flops ** law.place.exponent : bestX(law.surface, product);
  const tokens = product / x;
  const lossX = setting.flops / (lossLaw.unit * tokens);
  const loss = surfaceLoss(lossLaw.surface, lossX, effectiveTokens(facts, tokens, setting.unique));
  return { x, tokens, loss, lossX, flopsPerToken: setting.flops / tokens };
}

// nachim.budget.designs.loss_at
function trainedLoss(facts, shape, tokens, setting) {
  return surfaceLoss(facts.lossLaw.surface, shape.x, effectiveTokens(facts, tokens, setting.unique));
}

// nachim.budget.deploy._Candidate.loss: rounded weights and caches cost loss.
function servedLoss(facts, shape, tokens, setting) {
  const worth = effectiveTokens(facts, tokens, setting.unique);
  const rounded = shape.rounding * tokens ** facts.roundingExponent;
  return surfaceLoss(facts.lossLaw.surface, facts.share * shape.x, worth) + rounded;
}

function deviceHours(facts, shape, tokens, setting) {
  return ((shape.flopsPerToken + shape.headFlops) * tokens) / (facts.device.peak * setting.mfu) / 3600;
}

// nachim.budget.deploy.Training.dollars_per_token, times tokens
function trainDollars(facts, shape, tokens, setting) {
  return deviceHours(facts, shape, tokens, setting) * setting.price;
}

// nachim.budget.serve.Serving.dollars; without bound where the demand cannot be met.
function serveDollars(facts, shape, setting) {
  if (setting.served === 0) return 0;
  if (shape.hoursPerToken === null) return Infinity;
  const price = facts.served.price === null ? setting.price : facts.served.price;
  return shape.hoursPerToken * price * setting.served * setting.days;
}

// nachim.budget.deploy._least: golden sections of the logarithm.
function leastBetween(facts, value, low, high) {
  const golden = (Math.sqrt(5) - 1) / 2;
  [low, high] = [Math.log(low), Math.log(high)];
  let [left, right] = [high - golden * (high - low), low + golden * (high - low)];
  let [atLeft, atRight] = [value(Math.exp(left)), value(Math.exp(right))];
  for (let turn = 0; turn < facts.bisections; turn++) {
    if (atLeft <= atRight) {
      [high, right, atRight] = [right, left, atLeft];
      left = high - golden * (high - low);
      atLeft = value(Math.exp(left));
    } else {
      [low, left, atLeft] = [left, right, atRight];
      right = low + golden * (high - low);
      atRight = value(Math.exp(right));
    }
  }
  return Math.exp((low + high) / 2);
}

// nachim.budget.deploy.tokens_for; null where no number of tokens is enough.
function tokensFor(facts, lossOf, loss) {
  const { fewest, most, bisections } = facts;
  let [low, high, there] = [fewest, fewest, lossOf(fewest)];
  while (there > loss) {
    if (high > most) return null;
    const before = there;
    [low, high] = [high, 4 * high];
    there = lossOf(high);
    if (there >= before && there > loss) {
      high = leastBetween(facts, lossOf, low / 4, high);
      if (lossOf(high) > loss) return null;
      break;
    }
  }
  if (high === fewest) return fewest;
  [low, high] = [Math.log(Math.min(low, high) / 4), Math.log(high)];
  for (let turn = 0; turn < bisections; turn++) {
    const middle = (low + high) / 2;
    if (lossOf(Math.exp(middle)) > loss) low = middle;
    else high = middle;
  }
  return Math.exp(high);
}

// Every shape with the tokens that spend the budget (nachim.budget.designs.design_of).
function spent(facts, setting) {
  return facts.shapes.map((shape) => {
    const tokens = setting.flops / shape.flopsPerToken;
    return { shape, tokens, loss: trainedLoss(facts, shape, tokens, setting) };
  });
}

// The first of the plan's own designs that is within the planner's rank of the least loss, else the shape of least
// loss; the plan's own where its shape was asked for.
function bestDesign(facts, setting) {
  const found = spent(facts, setting);
  const least = found.reduce((one, other) => (other.loss < one.loss ? other : one));
  const enough = facts.fixed ? Infinity : (1 + facts.rank) * least.loss;
  const near = found.filter((one) => one.shape.rank !== null && one.loss <= enough);
  return near.reduce((one, other) => (one === null || other.shape.rank < one.shape.rank ? other : one), null) || least;
}

function costed(facts, shape, tokens, setting) {
  const train = trainDollars(facts, shape, tokens, setting);
  const serve = serveDollars(facts, shape, setting);
  return { shape, tokens, train, serve, total: train + serve };
}

// nachim.budget.deploy.break_even: served tokens from which the model that costs less a token is cheaper in all.
function breakEven(facts, one, other, setting) {
  if (one.shape.hoursPerToken === null || other.shape.hoursPerToken === null) return null;
  const price = facts.served.price === null ? setting.price : facts.served.price;
  const saved = (other.shape.hoursPerToken - one.shape.hoursPerToken) * price;
  const extra = one.train - other.train;
  return extra * saved > 0 ? extra / saved : null;
}

// nachim.budget.deploy.deploy at the loss that the best design reaches, or the wanted one; null where nothing can be
// served. The shapes on offer stand as far from the best design as those of `nachim plan` do.
function deployment(facts, setting) {
  const best = bestDesign(facts, setting);
  const loss = facts.wanted === null ? best.loss : facts.wanted;
  const [low, high] = facts.offered.map((times) => times * best.shape.flopsPerToken);
  const curve = [];
  for (const shape of facts.shapes) {
    if (!shape.offered || shape.flopsPerToken < low || shape.flopsPerToken > high) continue;
    const tokens = tokensFor(facts, (many) => servedLoss(facts, shape, many, setting), loss);
    if (tokens !== null) curve.push(costed(facts, shape, tokens, setting));
  }
  const cheapest = (name) => curve.reduce((one, other) => (other[name] < one[name] ? other : one));
  if (!curve.length || cheapest("total").total === Infinity) return null;
  const [chosen, chinchilla] = [cheapest("total"), cheapest("train")];
  return { loss, curve, chosen, chinchilla, breakEven: breakEven(facts, chosen, chinchilla, setting) };
}
