(* T07. One step of hard thresholding with restricted condition number kappa, for any w; GraDeS is the case f* = 0. *)
From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp Require Import ring.
From awp Require Import matrix_forms T02.
Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section OneStep.
Variables (R : rcfType) (n : nat) (w : 'rV[R]_n) (C : 'M[R]_n) (S : 'rV[R]_n -> Prop) (eta beta alpha : R).
Hypotheses (psdC : psd C) (eta_gt0 : 0 < eta) (alpha_gt0 : 0 < alpha) (short : eta * beta <= 1).

(* alpha and beta need only hold for differences of two points of S: k-sparse rows give at most 2k nonzeros. *)
Hypothesis upper : forall t u, S t -> S u -> form C (u - t) <= beta * sqnorm (u - t).
Hypothesis lower : forall t u, S t -> S u -> alpha * sqnorm (u - t) <= form C (u - t).

Local Notation f := (objective w C).
Definition kappa := (eta * alpha)^-1.

(* Without roots: the distance to u in the norm of C *)
Theorem step_towards t t' u : S t -> S u -> pgd_step w C S eta t t' ->
  f t' <= f u + (kappa - 1) * form C (u - t) / 2%:R.
Proof.
move=> St Su [St' near]; have [symC _] := psdC.
set g := gradient w C t.
have expand v : f v = f t + dot g (v - t) + form C (v - t) / 2%:R by rewrite -objectiveD // addrC subrK.
have compare : sqnorm (t' - t) + 2%:R * eta * dot g (t' - t) <= sqnorm (u - t) + 2%:R * eta * dot g (u - t).
  have split v : sqnorm (t - eta *: g - v) = sqnorm (v - t) + 2%:R * eta * dot g (v - t) + eta ^+ 2 * sqnorm g.
    have -> : t - eta *: g - v = - ((v - t) + eta *: g) by apply/rowP => j; rewrite !mxE; ring.
    by rewrite sqnormN sqnormD dotZr sqnormZ (dotC g); ring.
  by have := near _ Su; rewrite !split ler_add2r.
have le_t' := upper St St'; have le_u := lower St Su.
rewrite (expand t') (expand u).
move: (dot g (t' - t)) (dot g (u - t)) (form C (t' - t)) (form C (u - t)) (sqnorm (t' - t)) (sqnorm (u - t)) (f t)
  compare le_t' le_u (sqnorm_ge0 (t' - t)).
move=> a b q p s r ft compare le_q le_p s0.
(* q <= s / eta and r <= kappa eta p, then the comparison divided by 2 eta *)
have q_le : q <= s / eta.
  by apply: le_trans le_q _; rewrite ler_pdivl_mulr // mulrAC ler_pimull // mulrC.
have r_le : r / eta <= kappa * p.
  have -> : kappa * p = p / alpha / eta by rewrite /kappa; field; rewrite !gt_eqF.
  by rewrite ler_pmul2r ?invr_gt0 // ler_pdivl_mulr // mulrC.
rewrite -subr_ge0.
have -> : ft + b + p / 2%:R + (kappa - 1) * p / 2%:R - (ft + a + q / 2%:R)
  = ((r + 2%:R * eta * b) - (s + 2%:R * eta * a)) / (2%:R * eta) + (kappa * p - r / eta) / 2%:R + (s / eta - q) / 2%:R.
  by field; rewrite gt_eqF.
by rewrite !addr_ge0 ?divr_ge0 ?mulr_ge0 ?ler0n ?subr_ge0 // ltW.
Qed.

(* The triangle inequality in the norm of C *)
Lemma form_triangle t u : form C (u - t) <= 2%:R * (Num.sqrt (f t) + Num.sqrt (f u)) ^+ 2.
Proof.
have [symC _] := psdC; have ft0 := objective_ge0 w t psdC; have fu0 := objective_ge0 w u psdC.
have -> : u - t = (w - t) - (w - u) by apply/rowP => j; rewrite !mxE; ring.
rewrite formD // formN.
have cs : dot ((w - t) *m C) (- (w - u)) <= 2%:R * (Num.sqrt (f t) * Num.sqrt (f u)).
  rewrite -sqrtrM //; apply: le_trans (ler_norm _) _; rewrite -sqrtr_sqr.
  have -> : 2%:R * Num.sqrt (f t * f u) = Num.sqrt (2%:R ^+ 2 * (f t * f u)).
    by rewrite [RHS]sqrtrM ?sqr_ge0 // sqrtr_sqr ger0_norm ?ler0n.
  rewrite ler_wsqrtr //; apply: le_trans (form_cauchy _ _ psdC) _; rewrite formN /objective.
  move: (form C (w - t)) (form C (w - u)) => a b; rewrite le_eqVlt; apply/orP; left; apply/eqP; by field.
have sqt : Num.sqrt (f t) ^+ 2 = f t by rewrite sqr_sqrtr.
have squ : Num.sqrt (f u) ^+ 2 = f u by rewrite sqr_sqrtr.
have -> : 2%:R * (Num.sqrt (f t) + Num.sqrt (f u)) ^+ 2
  = form C (w - t) + 2%:R * (2%:R * (Num.sqrt (f t) * Num.sqrt (f u))) + form C (w - u).
  have -> : form C (w - t) = 2%:R * Num.sqrt (f t) ^+ 2 by rewrite sqt /objective; move: (form _ _) => a; field.
  have -> : form C (w - u) = 2%:R * Num.sqrt (f u) ^+ 2 by rewrite squ /objective; move: (form _ _) => a; field.
  by move: (Num.sqrt (f t)) (Num.sqrt (f u)) => a b; ring.
by rewrite ler_add2r ler_add2l ler_pmul2l ?ltr0n.
Qed.

(* (b) *)
Theorem near_best t t' u : 1 <= kappa -> S t -> S u -> pgd_step w C S eta t t' ->
  f t' <= f u + (kappa - 1) * (Num.sqrt (f t) + Num.sqrt (f u)) ^+ 2.
Proof.
move=> k1 St Su step; apply: le_trans (step_towards St Su step) _; rewrite ler_add2l -mulrA ler_wpmul2l ?subr_ge0 //.
by rewrite ler_pdivr_mulr ?ltr0n // mulrC form_triangle.
Qed.

(* (a) *)
Corollary grades t t' u : 1 <= kappa -> S t -> S u -> pgd_step w C S eta t t' -> f u = 0 -> f t' <= (kappa - 1) * f t.
Proof.
move=> k1 St Su step fu0; have := near_best k1 St Su step.
by rewrite fu0 sqrtr0 addr0 add0r sqr_sqrtr ?objective_ge0.
Qed.
End OneStep.
