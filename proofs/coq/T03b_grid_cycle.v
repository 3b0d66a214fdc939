(* T03 (b). The paper's step 1.5/||C||_F on a grid: a cycle of length two with one weight. *)
From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp Require Import ring.
From awp Require Import matrix_forms T02.
Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

(* (b) Quantization: d = 1, C = 1, codes {0, 1}, w = 2/5, eta = 3/2 = 1.5/||C||_F. *)
Section GridCycle.
Variable R : realFieldType.
Definition codes01 (T : 'rV[R]_1) := T = 0%:M \/ T = 1%:M.
Definition w : 'rV[R]_1 := (2%:R / 5%:R)%:M.
Definition grid_step := pgd_step w 1%:M codes01 (3%:R / 2%:R).

Lemma sqnorm_scalar (a b : R) : sqnorm (a%:M - b%:M : 'rV[R]_1) = (a - b) ^+ 2.
Proof. by rewrite sqnormE !big_ord1 !mxE eqxx !mulr1n. Qed.

(* The nearest code to z is 0 below 1/2 and 1 above. *)
Lemma nearest_0 z T : z < 1 / 2%:R -> nearest codes01 z%:M T <-> T = 0%:M.
Proof.
move=> lt; have strict : (z - 0) ^+ 2 < (z - 1) ^+ 2.
  rewrite -subr_gt0; have -> : (z - 1) ^+ 2 - (z - 0) ^+ 2 = 2%:R * (1 / 2%:R - z) by field.
  by rewrite mulr_gt0 ?ltr0n ?subr_gt0.
split=> [[[//|->] /(_ 0%:M (or_introl erefl))] | ->]; first by rewrite !sqnorm_scalar leNgt strict.
by split=> [|U]; [left | case=> ->; rewrite !sqnorm_scalar // ltW].
Qed.

Lemma nearest_1 z T : 1 / 2%:R < z -> nearest codes01 z%:M T <-> T = 1%:M.
Proof.
move=> lt; have strict : (z - 1) ^+ 2 < (z - 0) ^+ 2.
  rewrite -subr_gt0; have -> : (z - 0) ^+ 2 - (z - 1) ^+ 2 = 2%:R * (z - 1 / 2%:R) by field.
  by rewrite mulr_gt0 ?ltr0n ?subr_gt0.
split=> [[[->|//] /(_ 1%:M (or_intror erefl))] | ->]; first by rewrite !sqnorm_scalar leNgt strict.
by split=> [|U]; [right | case=> ->; rewrite !sqnorm_scalar // ltW].
Qed.

Lemma grid_target (a : R) : a%:M - (3%:R / 2%:R) *: gradient w 1%:M a%:M = (3%:R / 5%:R - a / 2%:R)%:M.
Proof. by apply/rowP => j; rewrite /gradient mulmx1 !mxE !ord1 eqxx !mulr1n; field. Qed.

(* At 0, z = 3/5; at 1, z = 1/10. *)
Theorem grid_cycle_up T : grid_step 0%:M T <-> T = 1%:M.
Proof.
rewrite /grid_step /pgd_step grid_target; apply: nearest_1; rewrite -subr_gt0.
have -> : 3%:R / 5%:R - 0 / 2%:R - 1 / 2%:R = 1 / 10%:R :> R by field.
by rewrite divr_gt0 ?ltr01 ?ltr0n.
Qed.

Theorem grid_cycle_down T : grid_step 1%:M T <-> T = 0%:M.
Proof.
rewrite /grid_step /pgd_step grid_target; apply: nearest_0; rewrite -subr_gt0.
have -> : 1 / 2%:R - (3%:R / 5%:R - 1 / 2%:R) = 2%:R / 5%:R :> R by field.
by rewrite divr_gt0 ?ltr01 ?ltr0n.
Qed.

Theorem grid_cycle_values : objective w 1%:M 0%:M = 2%:R / 25%:R /\ objective w 1%:M 1%:M = 9%:R / 50%:R.
Proof. by rewrite /objective !form_dot !mulmx1 -!/(sqnorm _) !sqnorm_scalar; split; field. Qed.

Theorem grid_cycles_for_ever (x : nat -> 'rV[R]_1) : x 0%N = 0%:M -> (forall t, grid_step (x t) (x t.+1)) ->
  forall t, x t.*2 = 0%:M /\ x t.*2.+1 = 1%:M.
Proof.
move=> x0 run t; suff even u : x u.*2 = 0%:M by split=> //; apply/grid_cycle_up; rewrite -(even t).
elim: u => [|u IH] //; apply/grid_cycle_down.
have <- : x u.*2.+1 = 1%:M by apply/grid_cycle_up; rewrite -IH.
exact: run.
Qed.

End GridCycle.
